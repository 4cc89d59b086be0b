//! H.264 by openh264, tuned for a desktop that somebody works on.

use std::time::Duration;

use openh264::{
    OpenH264API, Timestamp,
    encoder::{
        BitRate, Complexity, Encoder as Codec, EncoderConfig, FrameRate, FrameType, IntraFramePeriod,
        Profile, RateControlMode, SpsPpsStrategy, UsageType, VuiConfig,
    },
};
use openh264_sys2::{
    ENCODER_OPTION_BITRATE, ENCODER_OPTION_FRAME_RATE, ENCODER_OPTION_MAX_BITRATE, SBitrateInfo,
    SPATIAL_LAYER_0, SPATIAL_LAYER_ALL,
};
use polydev_core::desktop::ContentMode;

use super::{orders::Rate, picture::Picture};

/// Under the first rate text is tuned for sharpness, over the second for least delay; between them nothing changes.
const AUTO_KBPS: (u32, u32) = (1_700, 2_300);

/// What the encoder is tuned for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tuning {
    /// Least delay and CPU.
    Camera,
    /// Sharpest text for its bytes, twice the CPU.
    Screen,
}

/// The encoder failed: there is no stream without it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    /// It could not be made, or refused a picture.
    #[error("encoder: {0}")]
    Codec(#[from] openh264::Error),
    /// It refused a new rate.
    #[error("encoder refused option {option}: {code}")]
    Option {
        /// Which.
        option: i32,
        /// Its answer.
        code: i32,
    },
    /// It gave no picture.
    #[error("encoder gave no picture")]
    Nothing,
}

/// One encoder: one size of picture, one tuning.
pub(crate) struct Encoder {
    codec: Codec,
    tuning: Tuning,
    rate: Rate,
    /// Options can be changed only after the first picture.
    began: bool,
}

impl Tuning {
    /// The tuning for a rate, after another one was in use.
    pub(crate) fn choose(rate: Rate, before: Option<Self>) -> Self {
        match rate.mode {
            ContentMode::Camera => Self::Camera,
            ContentMode::Screen => Self::Screen,
            ContentMode::Auto if rate.kbps < AUTO_KBPS.0 => Self::Screen,
            ContentMode::Auto if rate.kbps >= AUTO_KBPS.1 => Self::Camera,
            ContentMode::Auto => before.unwrap_or(Self::Camera),
        }
    }
}

impl Encoder {
    /// Its first picture will be a keyframe.
    pub(crate) fn new(tuning: Tuning, rate: Rate) -> Result<Self, EncodeError> {
        let screen = tuning == Tuning::Screen;
        let config = EncoderConfig::new()
            .usage_type(if screen {
                UsageType::ScreenContentRealTime
            } else {
                UsageType::CameraVideoRealTime
            })
            .profile(Profile::Baseline)
            .complexity(Complexity::Low)
            .rate_control_mode(RateControlMode::Bitrate)
            .bitrate(BitRate::from_bps(rate.kbps * 1000))
            .max_frame_rate(FrameRate::from_hz(f32::from(rate.fps)))
            .skip_frames(false)
            .adaptive_quantization(false)
            .background_detection(!screen)
            .scene_change_detect(screen)
            .intra_frame_period(IntraFramePeriod::auto())
            .sps_pps_strategy(SpsPpsStrategy::ConstantId)
            .vui(VuiConfig::bt601())
            .num_threads(1);
        let codec = Codec::with_api_config(OpenH264API::from_source(), config)?;
        Ok(Self { codec, tuning, rate, began: false })
    }

    /// What it is tuned for.
    pub(crate) fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Changes the rate of the pictures to come.
    pub(crate) fn set_rate(&mut self, rate: Rate) -> Result<(), EncodeError> {
        let before = std::mem::replace(&mut self.rate, rate);
        if (rate.kbps, rate.fps) == (before.kbps, before.fps) {
            return Ok(());
        }
        if self.began { self.apply_rate(before) } else { self.renew() }
    }

    /// Encodes a picture that was taken so long after the stream's begin, as Annex B. Says whether it is a keyframe.
    pub(crate) fn encode(
        &mut self,
        picture: &Picture,
        at: Duration,
        key: bool,
    ) -> Result<(bool, Vec<u8>), EncodeError> {
        if key && self.began {
            self.codec.force_intra_frame();
        }
        let at = Timestamp::from_millis(u64::try_from(at.as_millis()).unwrap_or(u64::MAX >> 1));
        let bits = self.codec.encode_at(&picture.planes(), at)?;
        let (kind, data) = (bits.frame_type(), bits.to_vec());
        if data.is_empty() {
            return Err(EncodeError::Nothing);
        }
        if !self.began {
            self.began = true;
            self.apply_rate(self.rate)?;
        }
        Ok((matches!(kind, FrameType::IDR), data))
    }

    fn renew(&mut self) -> Result<(), EncodeError> {
        *self = Self::new(self.tuning, self.rate)?;
        Ok(())
    }

    fn apply_rate(&mut self, before: Rate) -> Result<(), EncodeError> {
        let target = i32::try_from(self.rate.kbps * 1000).unwrap_or(i32::MAX / 2);
        // A ceiling at the target itself would keep the encoder well under it.
        let ceiling = target.saturating_mul(2);
        let mut steps = [
            (ENCODER_OPTION_MAX_BITRATE, SBitrateInfo { iLayer: SPATIAL_LAYER_ALL, iBitrate: ceiling }),
            (ENCODER_OPTION_MAX_BITRATE, SBitrateInfo { iLayer: SPATIAL_LAYER_0, iBitrate: ceiling }),
            (ENCODER_OPTION_BITRATE, SBitrateInfo { iLayer: SPATIAL_LAYER_ALL, iBitrate: target }),
        ];
        // At no time may the target be over the ceiling.
        if self.rate.kbps < before.kbps {
            steps.reverse();
        }
        for (option, mut info) in steps {
            self.set(option, (&raw mut info).cast())?;
        }
        let mut frames = f32::from(self.rate.fps);
        self.set(ENCODER_OPTION_FRAME_RATE, (&raw mut frames).cast())
    }

    fn set(&mut self, option: i32, value: *mut std::ffi::c_void) -> Result<(), EncodeError> {
        // SAFETY: the encoder is initialised, for a picture was encoded; `value` points to what this option takes
        // (openh264 `codec_app_def.h`: `SBitrateInfo` for both bit rates, `float` for the frame rate).
        match unsafe { self.codec.raw_api().set_option(option, value) } {
            0 => Ok(()),
            code => Err(EncodeError::Option { option, code }),
        }
    }
}
