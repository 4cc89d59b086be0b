//! Looks at every frame of a network namespace for what an intruder sent.

use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, recv, socket, sockopt};

/// What all of it carries, before the name of its kind and a zero byte (or blank).
pub(crate) const MARK: &str = "FAKE-intruder-mark";
/// linux/if_ether.h: every frame, sent or received, in the byte order of the network.
const ETH_P_ALL: u16 = 3_u16.to_be();
/// Frames come faster than a busy machine looks at them.
const BUFFER: usize = 16 << 20;
const FRAME_MAX: usize = 64 << 10;
/// How long what was sent may take to be seen.
const LIMIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Kinds of what was seen so far. Looks until the test ends.
pub(crate) struct Sniffer {
    seen: Arc<Mutex<BTreeSet<String>>>,
}

impl Sniffer {
    /// In the calling thread's namespace.
    pub(crate) fn here() -> Self {
        let protocol = Protocol::from_raw(NonZeroU32::new(ETH_P_ALL.into()).unwrap());
        let socket = socket(AddressFamily::PACKET, SocketType::RAW, Some(protocol)).unwrap();
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).unwrap();
        let seen = Arc::<Mutex<BTreeSet<String>>>::default();
        let noted = Arc::clone(&seen);
        thread::spawn(move || {
            let mut frame = vec![0; FRAME_MAX];
            while let Ok((count, _)) = recv(&socket, &mut frame[..], RecvFlags::empty()) {
                if let Some(kind) = kind(&frame[..count]) {
                    noted.lock().unwrap().insert(kind);
                }
            }
        });
        Self { seen }
    }

    /// In the namespace that a file names.
    pub(crate) fn of(namespace: &Path) -> Self {
        super::within(namespace, Self::here)
    }

    /// Waits until all of these were seen, then forgets them: the proof that it would see them.
    pub(crate) fn assert_sees<'a>(&self, kinds: impl IntoIterator<Item = &'a str>) {
        let wanted: BTreeSet<String> = kinds.into_iter().map(str::to_owned).collect();
        let deadline = Instant::now() + LIMIT;
        loop {
            let missing: Vec<_> = wanted.difference(&self.seen.lock().unwrap()).cloned().collect();
            if missing.is_empty() {
                self.seen.lock().unwrap().clear();
                return;
            }
            assert!(Instant::now() < deadline, "never seen: {missing:?}");
            thread::sleep(LOOK_AGAIN);
        }
    }

    pub(crate) fn assert_saw_nothing(&self) {
        let seen = self.seen.lock().unwrap();
        assert!(seen.is_empty(), "got through: {seen:?}");
    }
}

fn kind(frame: &[u8]) -> Option<String> {
    let at = memchr::memmem::find(frame, MARK.as_bytes())?;
    let rest = &frame[at + MARK.len()..];
    let name = rest.split(|byte| matches!(byte, 0 | b'\r')).next().unwrap_or_default();
    Some(String::from_utf8_lossy(name).trim().to_owned())
}
