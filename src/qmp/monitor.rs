//! A guest's monitor: connects when asked, and again after a cut; everybody shares the one client. A second client of
//! one socket gets no greeting at all, so there is never more than one connection of ours.

use std::{io, os::unix::fs::FileTypeExt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Address, Client, ExecuteError,
    client::Facts,
    command::{QmpCapabilities, QueryBlock, QueryQmpSchema},
    process::{FileSystem, Process, Program},
    schema::Schemas,
    transport::{self, Reader},
    version::Version,
    wire::{self, Lines, MAX_LINE, Message, WireError},
};
use crate::retry::Retry;

/// How long the look at QEMU's root directory may take.
const ROOT_DEADLINE: Duration = Duration::from_secs(1);
/// How long QEMU may take to greet and to take the capabilities.
pub const GREETING_DEADLINE: Duration = Duration::from_secs(5);

/// Told of each command that failed: for counters by command and reason.
#[derive(Clone)]
pub struct ErrorObserver(Arc<dyn Fn(&ExecuteError) + Send + Sync>);

impl ErrorObserver {
    /// Calls `observe` at each failure; it must not block.
    pub fn new(observe: impl Fn(&ExecuteError) + Send + Sync + 'static) -> Self {
        Self(Arc::new(observe))
    }

    pub(super) fn failed(&self, error: &ExecuteError) {
        (self.0)(error);
    }
}

impl std::fmt::Debug for ErrorObserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ErrorObserver")
    }
}

/// No connection to a guest's monitor.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no socket of that name.
    #[error("There is no QMP socket {address}")]
    NotThere {
        /// The socket.
        address: Address,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What has the name is no socket.
    #[error("{address} is no QMP socket: {what} has that name")]
    NoSocket {
        /// The path.
        address: Address,
        /// What it is.
        what: &'static str,
    },
    /// Nobody listens on the socket: QEMU has ended, or not started yet.
    #[error("Nobody listens on QMP socket {address}")]
    Refused {
        /// The socket.
        address: Address,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be reached.
    #[error("QMP socket {address} cannot be connected to")]
    Unreachable {
        /// The socket.
        address: Address,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A part of its path is a symbolic link, which is never followed: it may be somebody else's.
    #[error("QMP socket {address} lies behind a symbolic link, which is not followed{}", leads_to(address))]
    Linked {
        /// The socket.
        address: Address,
    },
    /// Connected, but QEMU does not greet: it serves one client at a time.
    #[error("QMP socket {address} does not greet: another client holds the monitor")]
    Busy {
        /// The socket.
        address: Address,
    },
    /// It ended the connection before it greeted.
    #[error("QMP socket {address} ended the connection before its greeting")]
    Closed {
        /// The socket.
        address: Address,
    },
    /// What it says is not QMP.
    #[error("What listens on {address} does not speak QMP")]
    NotQmp {
        /// The socket.
        address: Address,
        /// What is wrong with what it said.
        #[source]
        source: WireError,
    },
    /// QEMU is older than any that this build may be used with.
    #[error("QEMU {version} on {address} is too old: 6.0 or newer is needed")]
    TooOld {
        /// The socket.
        address: Address,
        /// Its version.
        version: Version,
    },
    /// It greeted, but a command that opens the connection failed.
    #[error("QEMU on {address} greeted, but does not serve")]
    NotServing {
        /// The socket.
        address: Address,
        /// The cause.
        #[source]
        source: ExecuteError,
    },
}

impl ConnectError {
    /// One word for conditions, events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotThere { .. } | Self::NoSocket { .. } => "MonitorNotThere",
            Self::Refused { .. } => "MonitorRefused",
            Self::Unreachable { .. } => "MonitorUnreachable",
            Self::Linked { .. } => "MonitorLinked",
            Self::Busy { .. } => "MonitorBusy",
            Self::Closed { .. } => "MonitorClosed",
            Self::NotQmp { .. } => "NotQMP",
            Self::TooOld { .. } => "QEMUTooOld",
            Self::NotServing { source: ExecuteError::TimedOut { .. }, .. } => "MonitorHangs",
            Self::NotServing { .. } => "MonitorNotServing",
        }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotThere { .. }
            | Self::NoSocket { .. }
            | Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::Linked { .. }
            | Self::Busy { .. }
            | Self::Closed { .. }
            | Self::NotServing { .. } => Retry::Backoff,
            Self::NotQmp { .. } | Self::TooOld { .. } => Retry::OnChange,
        }
    }
}

/// What else a monitor works with.
#[derive(Debug, Clone, Default)]
pub struct MonitorOptions {
    /// Is told of each command that fails.
    pub observer: Option<ErrorObserver>,
    /// Where the schemas of QEMUs are kept, so that none is asked for twice.
    pub schemas: Option<Schemas>,
}

/// A guest's monitor. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Monitor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: Address,
    options: MonitorOptions,
    current: tokio::sync::Mutex<Option<Client>>,
}

impl Monitor {
    /// The monitor at `address`; nothing is connected yet.
    pub fn new(address: Address) -> Monitor {
        Monitor::with(address, MonitorOptions::default())
    }

    /// The same, with more.
    pub fn with(address: Address, options: MonitorOptions) -> Monitor {
        Monitor(Arc::new(Inner { address, options, current: tokio::sync::Mutex::default() }))
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// The living connection, or a new one. Callers at the same time wait for the same attempt.
    pub async fn client(&self) -> Result<Client, ConnectError> {
        let mut current = self.0.current.lock().await;
        if let Some(client) = current.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        *current = None;
        let client = connect(&self.0.address, &self.0.options).await?;
        *current = Some(client.clone());
        Ok(client)
    }

    /// Ends the connection, so that another client can use the socket. The next `client` connects again.
    pub async fn disconnect(&self) {
        if let Some(client) = self.0.current.lock().await.take() {
            client.close();
        }
    }
}

async fn connect(address: &Address, options: &MonitorOptions) -> Result<Client, ConnectError> {
    let deadline = Instant::now() + GREETING_DEADLINE;
    let connected = tokio::time::timeout_at(deadline, transport::connect(address)).await;
    let (mut reader, writer, pid) = match connected {
        Ok(Ok(connected)) => connected,
        Ok(Err(source)) => return Err(not_connected(address, source)),
        Err(_) => return Err(ConnectError::Busy { address: address.clone() }),
    };
    let mut lines = Lines::new(MAX_LINE);
    let (version, capabilities) = greeting(address, &mut reader, &mut lines, deadline).await?;
    let (major, minor) = Version::OLDEST;
    if !version.at_least(major, minor) {
        return Err(ConnectError::TooOld { address: address.clone(), version });
    }
    let enable: Vec<String> = capabilities.into_iter().filter(|capability| capability == "oob").collect();
    let process = pid.and_then(Process::of).filter(Process::is_qemu);
    let (file_system, program) = look_at(process.clone()).await;
    let facts = Facts {
        version: version.clone(),
        out_of_band: !enable.is_empty(),
        file_system,
        process,
        schema: Arc::default(),
        known: Arc::default(),
    };
    let client = Client::start(reader, writer, lines, facts, options.observer.clone());
    let not_serving = |source| ConnectError::NotServing { address: address.clone(), source };
    client.execute(&QmpCapabilities { enable }).await.map_err(not_serving)?;
    let store = options.schemas.as_ref().zip(program);
    let schema = match store.as_ref().and_then(|(schemas, program)| schemas.find(program, &version)) {
        Some(schema) => schema,
        None => {
            let schema = super::Schema::from(client.execute(&QueryQmpSchema {}).await.map_err(not_serving)?);
            if let Some((schemas, program)) = store {
                schemas.keep(&program, &version, &schema);
            }
            schema
        }
    };
    // Teaches the connection which names are drive ids, before anything can be sent that names one.
    client.execute(&QueryBlock {}).await.map_err(not_serving)?;
    Ok(client.with_schema(schema.shared()))
}

/// Whose files the process has, the host's where it is not seen: then nothing is read of it anyway; and what it runs. A file
/// system that hangs holds its reader.
async fn look_at(process: Option<Process>) -> (FileSystem, Option<Program>) {
    let Some(process) = process else { return (FileSystem::Host, None) };
    let looked = tokio::task::spawn_blocking(move || (process.file_system(), process.executable()));
    match tokio::time::timeout(ROOT_DEADLINE, looked).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(_)) | Err(_) => (FileSystem::Unknown, None),
    }
}

/// The way out, where the link can be read.
fn leads_to(Address::Unix(path): &Address) -> String {
    path.canonicalize().map(|path| format!(": give {}", path.display())).unwrap_or_default()
}

fn not_connected(address: &Address, source: io::Error) -> ConnectError {
    let address = address.clone();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ConnectError::NotThere { address, source },
        io::ErrorKind::ConnectionRefused => match no_socket(&address) {
            Some(what) => ConnectError::NoSocket { address, what },
            None => ConnectError::Refused { address, source },
        },
        // ELOOP (openat2(2)).
        _ if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => ConnectError::Linked { address },
        // The socket's queue is full of clients that wait for the one before them.
        io::ErrorKind::WouldBlock => ConnectError::Busy { address },
        _ => ConnectError::Unreachable { address, source },
    }
}

/// What refused the connection, where it is no socket at all (connect(2) tells no difference).
fn no_socket(Address::Unix(path): &Address) -> Option<&'static str> {
    let kind = std::fs::symlink_metadata(path).ok()?.file_type();
    match (kind.is_socket(), kind.is_dir()) {
        (true, _) => None,
        (false, true) => Some("a folder"),
        (false, false) => Some("a file"),
    }
}

/// Reads up to the greeting. Before it may come replies to a dead client, or the rest of one.
async fn greeting(
    address: &Address,
    reader: &mut Reader,
    lines: &mut Lines,
    deadline: Instant,
) -> Result<(Version, Vec<String>), ConnectError> {
    let not_qmp = |source| ConnectError::NotQmp { address: address.clone(), source };
    let mut nonsense = None;
    let mut buffer = vec![0; 4 << 10];
    loop {
        while let Some(line) = lines.next_line().map_err(not_qmp)? {
            match wire::parse(&line) {
                Ok(Message::Greeting { version, capabilities }) => return Ok((version, capabilities)),
                Ok(Message::Reply { .. } | Message::Event(_)) => {}
                Err(source) if nonsense.is_none() => nonsense = Some(source),
                Err(source) => return Err(not_qmp(source)),
            }
        }
        let read = tokio::time::timeout_at(deadline, reader.read(&mut buffer)).await;
        match (read, nonsense) {
            (Ok(Ok(read)), before) if read > 0 => {
                nonsense = before;
                lines.feed(&buffer[..read]);
            }
            (_, Some(source)) => return Err(not_qmp(source)),
            (Err(_), None) => return Err(ConnectError::Busy { address: address.clone() }),
            (Ok(_), None) => return Err(ConnectError::Closed { address: address.clone() }),
        }
    }
}

#[cfg(test)]
#[cfg(feature = "fake")]
mod tests;
