//! One side of the line to the manager: requests and answers, one JSON value a line.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use polydev_core::ids::{Slot, UserId, VmId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What a manager is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Answers with the id for a browser VM.
    Draw,
    Create {
        id: VmId,
        user: Option<UserId>,
    },
    Hibernate {
        id: VmId,
    },
    Resume {
        id: VmId,
    },
    Destroy {
        id: VmId,
    },
    List,
    Reclaim {
        wanted: BTreeSet<VmId>,
    },
    /// Has the agent write the marker file.
    Put {
        id: VmId,
        text: String,
    },
    /// Has the agent read the marker file.
    Get {
        id: VmId,
    },
    /// Has the agent run something; answers with the guest's boot id.
    Ping {
        id: VmId,
    },
    /// Makes what lets VMs start fast.
    Prepare,
    /// How many browser VMs are to be held ready.
    Warm {
        high: usize,
    },
    /// No new VMs, none held ready.
    Drain,
    /// The manager is to end in order. The line may end before the answer.
    End,
    Status,
}

/// A VM in the answer to [`Ask::List`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) id: VmId,
    pub(crate) slot: Slot,
    pub(crate) running: bool,
}

/// The answer to [`Ask::Status`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) slots_used: usize,
}

/// An answer on the line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done(serde_json::Value),
    Refused(String),
}

/// Why there is no answer of the wanted kind.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The manager is gone.
    Died,
    /// It lives and says no.
    Refused(String),
    /// It lives and says nothing.
    Silent,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Died => formatter.write_str("the manager died"),
            Self::Refused(words) => write!(formatter, "refused: {words}"),
            Self::Silent => formatter.write_str("no answer in time"),
        }
    }
}

/// A connection to a manager.
pub(crate) struct Caller {
    line: BufReader<UnixStream>,
}

impl Caller {
    pub(crate) fn connect(socket: &Path, patience: Duration) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Self { line: BufReader::new(stream) })
    }

    /// Asks and waits for the answer.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, ask: &Ask) -> Result<T, Failure> {
        let mut line = serde_json::to_vec(ask).expect("a request is always JSON");
        line.push(b'\n');
        self.line.get_mut().write_all(&line).map_err(|_| Failure::Died)?;
        let mut answer = String::new();
        match self.line.read_line(&mut answer) {
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                return Err(Failure::Silent);
            }
            Err(_) | Ok(0) => return Err(Failure::Died),
            Ok(_) => {}
        }
        // Half a line: it died in the middle of it.
        match serde_json::from_str(&answer).map_err(|_| Failure::Died)? {
            Answer::Done(value) => serde_json::from_value(value)
                .map_err(|error| Failure::Refused(format!("unexpected answer: {error}"))),
            Answer::Refused(words) => Err(Failure::Refused(words)),
        }
    }
}
