//! Compiles the agent's protocol without `protoc`: protox parses it, tonic-prost-build writes the code.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "proto/driftline/agent/v1/agent.proto";
    println!("cargo::rerun-if-changed={proto}");
    let files = protox::compile([proto], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
