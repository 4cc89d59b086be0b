//! What the controller logs while a test runs, at every level.

use std::{
    io::Write,
    sync::{Arc, Mutex, OnceLock},
};

use tracing_subscriber::filter::LevelFilter;

type Bytes = Arc<Mutex<Vec<u8>>>;

struct Tee(Bytes);

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything that this process logs from the first call on.
pub(crate) fn everything() -> Bytes {
    static LOG: OnceLock<Bytes> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let log = Bytes::default();
        let into = Arc::clone(&log);
        let fmt = tracing_subscriber::fmt().with_ansi(false).with_max_level(LevelFilter::TRACE);
        fmt.with_writer(move || Tee(Arc::clone(&into))).init();
        log
    });
    Arc::clone(log)
}
