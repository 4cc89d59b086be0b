//! Named places between two steps at which the chaos suite kills this process: `polydev host`, when it is built with the
//! feature `chaos`. Without it they are compiled to nothing.
//!
//! ```text
//! XTASK_FAILPOINT=NAME[:NTH]     the process kills itself at the NTH time (the first, unless told) it gets to NAME
//! XTASK_FAILPOINT_LOG=FILE       every place it gets to is appended to FILE, one name a line
//! ```
//!
//! Names are `area/step`, where the step says what has been or is about to be done: `create/before-record`.

/// Says that this process has got to a place. May not return.
#[cfg(not(feature = "chaos"))]
#[inline]
pub const fn reach(_name: &'static str) {}

#[cfg(feature = "chaos")]
pub use self::armed::reach;

#[cfg(feature = "chaos")]
mod armed {
    use std::{
        env,
        fs::{File, OpenOptions},
        io::Write,
        sync::{
            LazyLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    use rustix::process::{Signal, getpid, kill_process};

    const TRAP_VARIABLE: &str = "XTASK_FAILPOINT";
    const LOG_VARIABLE: &str = "XTASK_FAILPOINT_LOG";

    static TRAP: LazyLock<Option<Trap>> = LazyLock::new(|| Trap::parse(&env::var(TRAP_VARIABLE).ok()?));
    static LOG: LazyLock<Option<File>> =
        LazyLock::new(|| OpenOptions::new().create(true).append(true).open(env::var_os(LOG_VARIABLE)?).ok());

    /// Where this process ends.
    #[derive(Debug)]
    struct Trap {
        name: String,
        /// How many times it still gets there, this time included.
        left: AtomicU32,
    }

    impl Trap {
        fn parse(text: &str) -> Option<Self> {
            let (name, nth) = text.rsplit_once(':').unwrap_or((text, "1"));
            let nth: u32 = nth.parse().ok()?;
            (!name.is_empty() && nth > 0).then(|| Self { name: name.to_owned(), left: AtomicU32::new(nth) })
        }

        fn springs_at(&self, name: &str) -> bool {
            let one_less = |left: u32| left.checked_sub(1);
            self.name == name
                && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) == Ok(1)
        }
    }

    /// Says that this process has got to a place. May not return.
    pub fn reach(name: &'static str) {
        if let Some(mut log) = LOG.as_ref() {
            // One write of one line: those of several threads do not mix. A log that cannot be written shows in the
            // suite, which misses the names.
            let _ = log.write_all(format!("{name}\n").as_bytes());
        }
        if TRAP.as_ref().is_some_and(|trap| trap.springs_at(name)) {
            let _ = kill_process(getpid(), Signal::KILL);
            // Nothing may happen here until the signal takes effect.
            loop {
                std::thread::park();
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_trap_springs_the_nth_time_at_its_name_and_never_again() {
            let trap = Trap::parse("create/record:2").unwrap();
            assert!(!trap.springs_at("create/start"));
            let sprung: Vec<bool> = (0..4).map(|_| trap.springs_at("create/record")).collect();
            assert_eq!(sprung, [false, true, false, false]);
            assert!(Trap::parse("create/record").unwrap().springs_at("create/record"));
            assert!(Trap::parse("").is_none() && Trap::parse("create:none").is_none());
        }
    }
}
