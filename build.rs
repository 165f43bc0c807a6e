//! Compiles the agent's protocol without `protoc`: protox parses it, tonic-prost-build writes the code.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "proto/driftline/agent/v1/agent.proto";
    println!("cargo::rerun-if-changed={proto}");
    // Set by .cargo/config.toml. Two checkouts that build into one folder have files of the same names there; without
    // this the second one would run what the first one has built (measured with cargo 1.95).
    println!("cargo::rerun-if-env-changed=DRIFTLINE_CHECKOUT");
    let files = protox::compile([proto], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
