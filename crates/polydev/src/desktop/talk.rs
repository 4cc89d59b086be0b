//! What a viewer and the controller say to each other in words (JSON), beside the binary messages of
//! [`polydev_core::desktop`]. `web/src/desktop/protocol.ts` holds the same definitions.
//!
//! Words travel on the reliable data channel of WebRTC, or as text messages of the WebSocket.

use serde::{Deserialize, Serialize};

/// Longest words taken from a viewer: a clipboard text, escaped at worst.
pub const WORDS_MAX: usize = 6 * polydev_core::desktop::CLIPBOARD_MAX + 1024;

/// What a viewer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look, move and type. One viewer at a time has it.
    Control,
    /// Look only.
    View,
}

/// Which way clipboard texts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipboardPolicy {
    /// Both ways.
    #[default]
    Both,
    /// From the person to the VM only.
    In,
    /// From the VM to the person only.
    Out,
    /// No way.
    Off,
}

/// What a viewer says.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum FromViewer {
    /// The room for the picture, in CSS pixels, and the device pixel ratio in percent. Heeded of the viewer in control.
    Resize {
        /// Width in pixels.
        width: u16,
        /// Height in pixels.
        height: u16,
        /// Device pixel ratio x 100.
        scale: u16,
    },
    /// The person's clipboard, to become the VM's.
    Clipboard {
        /// Its text.
        text: String,
    },
    /// Asks for the control. Free: granted at once. Held: the holder is told.
    RequestControl,
    /// Gives the control up, to a viewer if one is named.
    ReleaseControl {
        /// Who gets it.
        #[serde(default)]
        to: Option<u32>,
    },
    /// The decoder needs a picture that stands alone (WebSocket; WebRTC has RTCP for that).
    Keyframe,
    /// Wants a [`ToViewer::Pong`].
    Ping {
        /// The viewer's own time in milliseconds.
        at: f64,
    },
    /// What the viewer measured since it last said so.
    Report(ViewerReport),
}

/// A viewer's own figures; each is left out when it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ViewerReport {
    /// Round trip to the controller, milliseconds.
    pub rtt_ms: Option<f64>,
    /// From arrival of a frame to its presentation (jitter buffer and decoder), milliseconds.
    pub present_ms: Option<f64>,
    /// From an input event to the first picture that can show it, milliseconds.
    pub input_to_picture_ms: Option<f64>,
    /// Frames shown.
    pub frames_shown: Option<u64>,
    /// Frames that arrived and were not shown.
    pub frames_dropped: Option<u64>,
    /// Freezes longer than 500 ms.
    pub freezes: Option<u64>,
}

/// What the controller says to a viewer.
#[derive(Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToViewer {
    /// Comes first.
    Hello {
        /// This viewer's number.
        viewer: u32,
        /// What it may do now.
        role: Role,
        /// Whether it may ever have the control.
        may_control: bool,
        /// Viewers, this one included.
        viewers: u32,
        /// Width of the desktop.
        width: u16,
        /// Height of the desktop.
        height: u16,
        /// Which way clipboard texts go.
        clipboard: ClipboardPolicy,
    },
    /// Its role changed.
    Role {
        /// What it may do now.
        role: Role,
    },
    /// Somebody came or went.
    Viewers {
        /// How many there are.
        viewers: u32,
    },
    /// To the viewer in control: another one asks for it.
    ControlRequested {
        /// Who asks.
        viewer: u32,
    },
    /// The desktop's size changed.
    Size {
        /// Width in pixels.
        width: u16,
        /// Height in pixels.
        height: u16,
    },
    /// A program in the VM put this on its clipboard. To the viewer in control only.
    Clipboard {
        /// The text.
        text: String,
    },
    /// Answer to [`FromViewer::Ping`].
    Pong {
        /// The time of the ping.
        at: f64,
    },
    /// The picture is interrupted while the guest's program or display starts again, or is there again.
    Interrupted {
        /// Whether it is.
        interrupted: bool,
    },
    /// About once a second.
    Stats(HubStats),
    /// Something the viewer sent was not accepted.
    Refused {
        /// Stable code: `view_only`, `bad_message`, `too_fast`, `clipboard_policy`, `too_long`.
        code: &'static str,
    },
    /// Nothing more comes.
    Ended {
        /// In words for a person.
        reason: String,
    },
}

/// Figures of the controller and the guest for one viewer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HubStats {
    /// Frames per second leaving for this viewer.
    pub fps: f64,
    /// Bits per second of frames leaving for this viewer, in kbit/s.
    pub kbps: f64,
    /// What the network to this viewer is thought to take, kbit/s.
    pub estimate_kbps: Option<u32>,
    /// Frames not sent to this viewer because it was too slow, so far.
    pub dropped: u64,
    /// Keyframes sent to this viewer, so far.
    pub keyframes: u64,
    /// From reading the screen to leaving the controller, milliseconds, mean of the last second.
    pub server_ms: Option<f64>,
    /// From an input's arrival at the controller to the first frame that can show it leaving, milliseconds, mean of the
    /// last second.
    pub input_server_ms: Option<f64>,
    /// CPU of the guest's desktop program, share of one core.
    pub guest_cpu: Option<f64>,
    /// CPU of the encoder per frame, milliseconds.
    pub encode_ms: Option<f64>,
}
