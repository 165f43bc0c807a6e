//! Runs kubectl and helm against the control plane, as a person would, and keeps what they said.

use std::{
    ffi::OsStr,
    fmt,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use super::ControlPlane;

/// What a program said, with the command line that it was started by.
pub struct Answer {
    what: String,
    output: Output,
}

impl Answer {
    /// stdout, of a command that succeeded; panics with everything it said otherwise.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.succeeded(), "{self}");
        self.stdout()
    }

    /// stderr, of a command that failed; panics when it succeeded.
    #[track_caller]
    pub fn refused(self) -> String {
        assert!(!self.succeeded(), "This should have been refused: {self}");
        self.stderr()
    }

    /// True when the exit status was 0.
    pub fn succeeded(&self) -> bool {
        self.output.status.success()
    }

    /// What it printed.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// What it complained about. Warnings of the API server stand here.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n{}{}", self.what, self.output.status, self.stdout(), self.stderr())
    }
}

impl ControlPlane {
    /// Runs kubectl as the administrator.
    pub fn kubectl<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Answer {
        self.run(self.kubectl_command(&self.admin_kubeconfig()).args(args), None)
    }

    /// Runs kubectl with the rights of `kubeconfig`.
    pub fn kubectl_as<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, kubeconfig: &Path, args: I) -> Answer {
        self.run(self.kubectl_command(kubeconfig).args(args), None)
    }

    /// `kubectl apply -f -` of `yaml` as the administrator, into `namespace` where the objects name none.
    pub fn apply(&self, namespace: &str, yaml: &str) -> Answer {
        let mut command = self.kubectl_command(&self.admin_kubeconfig());
        self.run(command.args(["apply", "-n", namespace, "-f", "-"]), Some(yaml))
    }

    /// Runs kubectl as the administrator with something on stdin.
    pub fn kubectl_with<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I, input: &str) -> Answer {
        self.run(self.kubectl_command(&self.admin_kubeconfig()).args(args), Some(input))
    }

    /// kubectl of the control plane's own version, for a command that is not waited for at once.
    pub fn kubectl_command(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.arg("--kubeconfig").arg(kubeconfig).arg("--cache-dir").arg(self.folder.join("kubectl"));
        command
    }

    /// Runs helm; `template` and `lint` need no server.
    pub fn helm<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Answer {
        let mut command = Command::new(self.programs.join("helm"));
        command.env("KUBECONFIG", self.admin_kubeconfig());
        // Nothing of the person's own helm.
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.folder.join("helm"));
        }
        self.run(command.args(args), None)
    }

    fn run(&self, command: &mut Command, input: Option<&str>) -> Answer {
        let what = format!("{command:?}");
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{what} cannot be started: {error}"));
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            // A program that ends without reading all says why itself.
            let _ = pipe.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().unwrap_or_else(|error| panic!("{what} cannot be waited for: {error}"));
        Answer { what, output }
    }
}
