//! The task of one viewer: whatever comes first of packets, pictures, words, further offers and time.

use std::time::{Duration, Instant};

use polydev_core::ids::SessionId;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{FrameQueue, WordQueue},
    offer::{AcceptError, Offer},
    routes::Packet,
    session::{Ended, Reach, Session},
};

/// A page that has not connected by then will not.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// A page that is not reached for so long may come again with its token only.
const LOST_LIMIT: Duration = Duration::from_secs(20);
/// While a path is full: when to look again.
const LOOK_AGAIN: Duration = Duration::from_millis(4);
/// Rounds without waiting before other viewers get their turn.
const ROUNDS: usize = 64;

/// A further offer for the same session.
pub(super) struct Command {
    pub(super) offer: Offer,
    pub(super) reply: oneshot::Sender<Result<String, AcceptError>>,
}

/// One viewer.
pub(super) struct Viewer {
    pub(super) session: Session,
    pub(super) frames: FrameQueue,
    pub(super) words: WordQueue,
    pub(super) packets: mpsc::Receiver<Packet>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) stop: CancellationToken,
}

impl Viewer {
    /// Runs until the viewer has left, and says why.
    pub(super) async fn run(mut self, id: SessionId) -> Ended {
        let begun = Instant::now();
        let mut told = false;
        loop {
            match self.step().await {
                Ok(()) => {}
                Err(ended) => {
                    if !matches!(ended, Ended::Panicked(_)) {
                        self.session.close(Instant::now());
                    } else {
                        tracing::error!(session.id = %id, "the WebRTC library failed; the viewer has to connect again");
                    }
                    return ended;
                }
            }
            if !told && self.session.reach() == Reach::Connected {
                told = true;
                let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(session.id = %id, elapsed_ms, "WebRTC viewer is connected");
            }
        }
    }

    /// One input to the session, and all its outputs.
    async fn step(&mut self) -> Result<(), Ended> {
        let mut at = self.session.drain(Instant::now())?;
        for round in 0.. {
            let now = Instant::now();
            if at > now {
                break;
            }
            self.session.tick(now)?;
            at = self.session.drain(now)?;
            if round >= ROUNDS {
                tokio::task::yield_now().await;
                break;
            }
        }
        let limit = match self.session.reach() {
            Reach::Connecting(since) => since + CONNECT_LIMIT,
            Reach::Lost(since) => since + LOST_LIMIT,
            Reach::Connected => at,
        };
        if limit <= Instant::now() && self.session.reach() != Reach::Connected {
            return Err(Ended::Unreachable);
        }
        let takes_pictures = self.session.takes_pictures();
        let wake = match self.session.reach() {
            // A path that is full empties without telling.
            Reach::Connected if !takes_pictures && self.session.has_picture() => {
                at.min(Instant::now() + LOOK_AGAIN)
            }
            Reach::Connected | Reach::Connecting(_) | Reach::Lost(_) => at.min(limit),
        };
        tokio::select! {
            () = self.stop.cancelled() => Err(Ended::Desktop),
            Some(packet) = self.packets.recv() => self.session.receive(&packet),
            Some(command) = self.commands.recv() => self.renegotiate(command),
            frame = self.frames.next(), if takes_pictures => match frame {
                Some(frame) => self.session.show(&frame, Instant::now()),
                None => Err(Ended::Desktop),
            },
            word = self.words.next(), if self.session.takes_words() => match word {
                Some(word) => self.session.say(&word),
                None => Err(Ended::Desktop),
            },
            () = sleep_until(wake.into()) => self.session.tick(Instant::now()),
        }
    }

    fn renegotiate(&mut self, command: Command) -> Result<(), Ended> {
        let Command { offer, reply } = command;
        let answer = offer.accept(self.session.rtc());
        let failed = matches!(answer, Err(AcceptError::Panicked(_)));
        if let Ok(answer) = &answer
            && let Some(name) = local_name(answer)
        {
            self.session.called(&name);
        }
        // The page may have gone meanwhile.
        let _ = reply.send(answer);
        if failed { Err(Ended::Protocol) } else { Ok(()) }
    }
}

/// The name that the page's binding requests will be addressed to.
pub(super) fn local_name(answer: &str) -> Option<String> {
    answer.lines().find_map(|line| line.strip_prefix("a=ice-ufrag:")).map(|name| name.trim().to_owned())
}

/// Whether an answer has the picture in it: a section for video that sends H.264.
pub(super) fn sends_h264(answer: &str) -> bool {
    let mut video = answer.lines().map(str::trim_end).skip_while(|line| !line.starts_with("m=video "));
    let Some(head) = video.next() else { return false };
    let section: Vec<&str> = video.take_while(|line| !line.starts_with("m=")).collect();
    !head.starts_with("m=video 0 ")
        && section.iter().any(|line| line.starts_with("a=rtpmap:") && line.contains(" H264/90000"))
        && section.iter().any(|line| line.contains("packetization-mode=1"))
        && section.iter().any(|line| *line == "a=sendonly" || *line == "a=sendrecv")
}
