//! Child processes that never outlive the test: killed when dropped, and by the kernel when the test process is killed.
//!
//! `PR_SET_PDEATHSIG` acts when the *thread* that forked ends, not its process. So one thread that lives as long as
//! the process starts all children, each in the network of the thread that wants it; a machine that is kept in a `static`
//! survives the test that made it.

use std::{
    io,
    process::{Child, Command, ExitStatus},
    sync::{Mutex, OnceLock, mpsc},
    time::{Duration, Instant},
};

use super::netns::Netns;

/// A running child. Dropping it kills it with SIGKILL and waits for its end.
pub struct Guarded(Child);

impl Guarded {
    /// Starts `program` with the arguments, environment and redirections that `set` adds.
    pub fn start(program: &str, set: impl FnOnce(&mut Command)) -> Guarded {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        set(&mut command);
        Guarded(spawn(command).unwrap_or_else(|error| panic!("Cannot start {program} by setpriv: {error}")))
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The child itself: for its pipes.
    pub fn inner(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Kills with SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Sends a signal by its number.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).expect("the child is there to be signalled");
    }

    /// True while it runs.
    pub fn is_alive(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Waits for its end; panics past the deadline.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("process {} ends", self.id());
        wait_for(&what, deadline, || self.0.try_wait().expect("a child can be waited for"))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks again and again until there is an answer; panics with `what` past the deadline.
pub fn wait_for<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < deadline, "Waited {deadline:?} in vain: {what}");
        pause(began);
    }
}

/// Sleeps before the next question of somebody who waits since then: the longer it takes, the less it matters when it is
/// seen, and to ask is not for nothing.
pub fn pause(since: Instant) {
    std::thread::sleep((since.elapsed() / 10).clamp(Duration::from_millis(10), Duration::from_millis(250)));
}

type Order = (Command, Netns, mpsc::Sender<io::Result<Child>>);

fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("child-starter".into())
            .spawn(move || {
                for (mut command, network, reply) in inbox {
                    network.move_thread();
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("a thread can be made");
        Mutex::new(orders)
    });
    let (reply, answer) = mpsc::channel();
    starter
        .lock()
        .expect("no starter panics")
        .send((command, Netns::current(), reply))
        .expect("the starter lives as long as the process");
    answer.recv().expect("the starter answers")
}
