//! H.264 by openh264, tuned for a desktop that somebody works on.

use std::{ffi::c_int, time::Duration};

use openh264_sys2::{
    CAMERA_VIDEO_REAL_TIME, CONSTANT_ID, LOW_COMPLEXITY, PRO_BASELINE, RC_BITRATE_MODE,
    SCREEN_CONTENT_REAL_TIME, SEncParamExt, SM_SINGLE_SLICE,
};
use polydev_core::desktop::ContentMode;

use super::{
    codec::{Codec, CodecError},
    orders::Rate,
    picture::Picture,
};

/// Under the first rate text is tuned for sharpness, over the second for least delay; between them nothing changes.
const AUTO_KBPS: (u32, u32) = (1_700, 2_300);
/// Finest and coarsest step of the quantiser, from 0 to 51. Finer ones cannot be told apart, and a picture that is still
/// would be carried there: the next change, coded as finely, would be much larger than what the link takes.
const CAMERA_STEPS: (c_int, c_int) = (22, 42);
/// The same for the screen tuning: text stays legible at all times.
const SCREEN_STEPS: (c_int, c_int) = (26, 35);
/// SMPTE 170M, which is BT.601 (H.264, annex E).
const BT601: u8 = 6;

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
    /// It refused something.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// It gave no picture.
    #[error("encoder gave no picture")]
    Nothing,
}

/// One encoder: one size of picture, one tuning.
pub(crate) struct Encoder {
    codec: Codec,
    tuning: Tuning,
    rate: Rate,
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
    pub(crate) fn new(tuning: Tuning, rate: Rate, width: u16, height: u16) -> Result<Self, EncodeError> {
        let codec = Codec::new(|settings| choose(settings, tuning, rate, [width.into(), height.into()]))?;
        Ok(Self { codec, tuning, rate })
    }

    /// What it is tuned for.
    pub(crate) fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Changes the rate of the pictures to come.
    pub(crate) fn set_rate(&mut self, rate: Rate) -> Result<(), EncodeError> {
        let before = std::mem::replace(&mut self.rate, rate);
        if rate.kbps != before.kbps {
            self.codec.set_bitrate(bits(rate))?;
        }
        if rate.fps != before.fps {
            self.codec.set_frame_rate(rate.fps.into())?;
        }
        Ok(())
    }

    /// Encodes a picture that was taken so long after the stream's begin, as Annex B. Says whether it is a keyframe.
    pub(crate) fn encode(
        &mut self,
        picture: &Picture,
        at: Duration,
        key: bool,
    ) -> Result<(bool, Vec<u8>), EncodeError> {
        if key {
            self.codec.force_key()?;
        }
        let at_ms = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
        let mut data = Vec::new();
        let key = self.codec.encode(picture, at_ms, &mut data)?;
        if data.is_empty() { Err(EncodeError::Nothing) } else { Ok((key, data)) }
    }
}

fn bits(rate: Rate) -> c_int {
    c_int::try_from(rate.kbps * 1000).unwrap_or(c_int::MAX)
}

fn choose(settings: &mut SEncParamExt, tuning: Tuning, rate: Rate, [width, height]: [c_int; 2]) {
    let screen = tuning == Tuning::Screen;
    settings.iUsageType = if screen { SCREEN_CONTENT_REAL_TIME } else { CAMERA_VIDEO_REAL_TIME };
    (settings.iPicWidth, settings.iPicHeight) = (width, height);
    settings.iTargetBitrate = bits(rate);
    settings.iRCMode = RC_BITRATE_MODE;
    settings.fMaxFrameRate = rate.fps.into();
    settings.iComplexityMode = LOW_COMPLEXITY;
    // Keyframes come when they are asked for. Nothing is dropped here: what is dropped is not even captured.
    settings.uiIntraPeriod = 0;
    settings.bEnableFrameSkip = false;
    // A keyframe of long ago would count against the next change: debts are counted in frames, and here frames are rare.
    settings.bFixRCOverShoot = false;
    settings.eSpsPpsIdStrategy = CONSTANT_ID;
    (settings.iMinQp, settings.iMaxQp) = if screen { SCREEN_STEPS } else { CAMERA_STEPS };
    // More threads only cost.
    settings.iMultipleThreadIdc = 1;
    settings.bEnableAdaptiveQuant = false;
    settings.bEnableBackgroundDetection = !screen;
    settings.bEnableSceneChangeDetect = screen;
    settings.bEnableLongTermReference = false;
    settings.bEnableDenoise = false;
    (settings.iSpatialLayerNum, settings.iTemporalLayerNum) = (1, 1);
    let layer = &mut settings.sSpatialLayers[0];
    (layer.iVideoWidth, layer.iVideoHeight) = (width, height);
    layer.fFrameRate = rate.fps.into();
    layer.iSpatialBitrate = bits(rate);
    layer.uiProfileIdc = PRO_BASELINE;
    layer.sSliceArgument.uiSliceMode = SM_SINGLE_SLICE;
    layer.sSliceArgument.uiSliceNum = 1;
    layer.bVideoSignalTypePresent = true;
    layer.bColorDescriptionPresent = true;
    layer.bFullRange = false;
    (layer.uiColorPrimaries, layer.uiTransferCharacteristics, layer.uiColorMatrix) = (BT601, BT601, BT601);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tuning_does_not_flutter_around_its_threshold() {
        let auto = |kbps| Rate { kbps, fps: 30, mode: ContentMode::Auto };
        let mut tuning = None;
        for (kbps, expected) in [
            (2_000, Tuning::Camera),
            (1_699, Tuning::Screen),
            (2_000, Tuning::Screen),
            (2_300, Tuning::Camera),
            (1_700, Tuning::Camera),
        ] {
            tuning = Some(Tuning::choose(auto(kbps), tuning));
            assert_eq!(tuning, Some(expected), "at {kbps} kbit/s");
        }
        let fixed = Rate { kbps: 20_000, fps: 30, mode: ContentMode::Screen };
        assert_eq!(Tuning::choose(fixed, tuning), Tuning::Screen);
    }

    #[test]
    fn every_rate_of_the_protocol_is_taken_in_any_order() {
        let rate = |kbps, fps| Rate { kbps, fps, mode: ContentMode::Camera };
        let mut encoder = Encoder::new(Tuning::Camera, rate(3_000, 30), 320, 320).unwrap();
        let picture = Picture::new(320, 320);
        for (number, (kbps, fps)) in
            [(50_000, 60), (100, 1), (20_000, 30), (100, 60), (50_000, 1)].into_iter().enumerate()
        {
            encoder.set_rate(rate(kbps, fps)).unwrap();
            let at = Duration::from_millis(33 * number as u64);
            let (key, data) = encoder.encode(&picture, at, false).unwrap();
            assert_eq!(key, number == 0);
            assert!(!data.is_empty());
        }
        // SPS: type 7, profile 66, constraint sets 0 and 1.
        let (key, data) = encoder.encode(&picture, Duration::from_secs(1), true).unwrap();
        assert!(key && data.starts_with(&[0, 0, 0, 1, 0x67, 66, 0xc0]), "{:x?}", &data[..8]);
    }
}
