//! When the guest is asked for a keyframe. Each costs everybody a hundred kilobytes, so wishes are gathered, and a
//! viewer that wishes again and again waits longer and longer. Pure: time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// The guest is asked at most this often: a picture that is lost right after a keyframe shall not stand for half a second.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(300);
/// The longest that one viewer's wish waits.
const PATIENCE_MAX: Duration = Duration::from_secs(5);
/// A viewer that did not wish for one for this long begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10);

/// Gathers the wishes of all viewers.
#[derive(Debug, Default)]
pub(super) struct Keyframes {
    /// Since when one is wanted.
    wanted: Option<Instant>,
    asked: Option<Instant>,
}

impl Keyframes {
    /// One is wanted.
    pub(super) fn want(&mut self, now: Instant) {
        self.wanted.get_or_insert(now);
    }

    /// One came. Whoever wanted one gets it.
    pub(super) fn came(&mut self) {
        self.wanted = None;
    }

    /// Whether the guest is to be asked now.
    pub(super) fn ask(&mut self, now: Instant) -> bool {
        let due = self.deadline().is_some_and(|due| due <= now);
        if due {
            (self.wanted, self.asked) = (None, Some(now));
        }
        due
    }

    /// When it is to be asked.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.wanted.map(|wanted| self.asked.map_or(wanted, |asked| wanted.max(asked + ASK_EVERY)))
    }
}

/// How one viewer's wishes are heeded.
#[derive(Debug, Default)]
pub(super) struct Patience {
    wanted: bool,
    granted: Option<(Instant, Duration)>,
}

impl Patience {
    /// The viewer wants a keyframe.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// A keyframe went its way.
    pub(super) fn came(&mut self) {
        self.wanted = false;
    }

    /// It waits no longer than the first time again: who sets the rate is helped by a lower one, not by waiting.
    pub(super) fn forgive(&mut self) {
        if let Some((_, wait)) = &mut self.granted {
            *wait = ASK_EVERY;
        }
    }

    /// Whether its wish is to be heeded now.
    pub(super) fn grant(&mut self, now: Instant) -> bool {
        if !self.wanted || self.deadline().is_some_and(|due| due > now) {
            return false;
        }
        let wait = match self.granted {
            Some((at, wait)) if now.duration_since(at) < FORGIVEN_AFTER => (wait * 2).min(PATIENCE_MAX),
            Some(_) | None => ASK_EVERY,
        };
        (self.wanted, self.granted) = (false, Some((now, wait)));
        true
    }

    /// When its wish is heeded, if it has one that has to wait.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.granted.filter(|_| self.wanted).map(|(at, wait)| at + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_guest_is_asked_rarely_and_no_wish_is_lost(gaps_ms in prop::collection::vec(0..400_u64, 1..80)) {
            let mut keyframes = Keyframes::default();
            let mut now = Instant::now();
            let mut asked: Vec<Instant> = Vec::new();
            for gap in gaps_ms {
                now += Duration::from_millis(gap);
                keyframes.want(now);
                if keyframes.ask(now) {
                    asked.push(now);
                }
            }
            let last_wish = now;
            if keyframes.deadline().is_some() {
                now += ASK_EVERY;
                prop_assert!(keyframes.ask(now));
                asked.push(now);
            }
            prop_assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= ASK_EVERY));
            prop_assert!(asked.last().is_some_and(|at| *at >= last_wish));
        }

        #[test]
        fn a_viewer_that_wishes_all_the_time_gets_few(seconds in 20..120_u64) {
            let (start, mut patience) = (Instant::now(), Patience::default());
            let granted = (0..seconds * 10).filter(|tenth| {
                patience.want();
                patience.grant(start + Duration::from_millis(tenth * 100))
            });
            // 0.3 + 0.6 + 1.2 + 2.4 + 4.8 s, then every 5 s.
            prop_assert!(granted.count() as u64 <= 5 + seconds / 5);
        }
    }

    #[test]
    fn the_first_wish_is_heeded_at_once() {
        let (now, mut keyframes) = (Instant::now(), Keyframes::default());
        assert!(!keyframes.ask(now));
        keyframes.want(now);
        assert!(keyframes.ask(now) && keyframes.deadline().is_none());
    }

    #[test]
    fn a_viewer_that_is_forgiven_never_waits_longer_than_the_first_time() {
        let (mut now, mut patience) = (Instant::now(), Patience::default());
        for _ in 0..10 {
            patience.want();
            assert!(patience.grant(now));
            patience.forgive();
            patience.want();
            assert_eq!(patience.deadline(), Some(now + ASK_EVERY));
            now += ASK_EVERY;
        }
    }

    #[test]
    fn a_viewer_that_was_quiet_is_heeded_at_once() {
        let (start, mut patience) = (Instant::now(), Patience::default());
        for _ in 0..20 {
            patience.want();
            patience.grant(start);
        }
        patience.want();
        assert!(!patience.grant(start));
        assert!(patience.grant(start + FORGIVEN_AFTER));
        patience.want();
        assert_eq!(patience.deadline(), Some(start + FORGIVEN_AFTER + ASK_EVERY));
    }
}
