//! The one place that calls into openh264 (`codec_api.h`, `codec_app_def.h` of version 2.6).

use std::ffi::{c_int, c_void};

use openh264_sys2::{
    API, DynamicAPI, ENCODER_OPTION_BITRATE, ENCODER_OPTION_FRAME_RATE, ENCODER_OPTION_TRACE_LEVEL,
    ISVCEncoder, ISVCEncoderVtbl, SBitrateInfo, SEncParamExt, SFrameBSInfo, SPATIAL_LAYER_ALL,
    SSourcePicture, WELS_LOG_QUIET, videoFormatI420, videoFrameTypeIDR,
};

use super::picture::Picture;

const COMPLETE: &str = "openh264 has all of its functions";

/// An answer of openh264 that is not "done".
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("openh264 could not {what}: {code}")]
pub(crate) struct CodecError {
    what: &'static str,
    code: c_int,
}

/// An encoder that is ready for pictures of one size.
pub(crate) struct Codec {
    api: DynamicAPI,
    encoder: *mut ISVCEncoder,
    calls: ISVCEncoderVtbl,
    out: Box<SFrameBSInfo>,
}

impl Codec {
    /// `choose` changes what the library would take by itself.
    pub(crate) fn new(choose: impl FnOnce(&mut SEncParamExt)) -> Result<Self, CodecError> {
        let api = DynamicAPI::from_source();
        let mut encoder = std::ptr::null_mut();
        // SAFETY: it writes one pointer, to an encoder that lives until `WelsDestroySVCEncoder`.
        check("be made", unsafe { api.WelsCreateSVCEncoder(&raw mut encoder) })?;
        // SAFETY: an encoder is a pointer to its table of functions, both valid as it was made above.
        let calls = unsafe { **encoder };
        let mut codec = Self { api, encoder, calls, out: Box::default() };
        codec.set("be quiet", ENCODER_OPTION_TRACE_LEVEL, WELS_LOG_QUIET)?;
        let mut settings = SEncParamExt::default();
        let defaults = codec.calls.GetDefaultParams.expect(COMPLETE);
        // SAFETY: the encoder is valid and fills the structure it is given.
        check("name its defaults", unsafe { defaults(codec.encoder, &raw mut settings) })?;
        choose(&mut settings);
        let initialize = codec.calls.InitializeExt.expect(COMPLETE);
        // SAFETY: as above; it only reads the structure.
        check("take its settings", unsafe { initialize(codec.encoder, &raw const settings) })?;
        Ok(codec)
    }

    /// Changes the target, in bits per second.
    pub(crate) fn set_bitrate(&mut self, bits: c_int) -> Result<(), CodecError> {
        let info = SBitrateInfo { iLayer: SPATIAL_LAYER_ALL, iBitrate: bits };
        self.set("change its bit rate", ENCODER_OPTION_BITRATE, info)
    }

    /// Changes the most frames per second.
    pub(crate) fn set_frame_rate(&mut self, frames: f32) -> Result<(), CodecError> {
        self.set("change its frame rate", ENCODER_OPTION_FRAME_RATE, frames)
    }

    /// The next picture will be a keyframe.
    pub(crate) fn force_key(&mut self) -> Result<(), CodecError> {
        let force = self.calls.ForceIntraFrame.expect(COMPLETE);
        // SAFETY: the encoder is valid and initialised.
        check("be told to begin anew", unsafe { force(self.encoder, true) })
    }

    /// Encodes a picture of the size it was made for, and appends it to `out`. Says whether it is a keyframe.
    pub(crate) fn encode(
        &mut self,
        picture: &Picture,
        at_ms: i64,
        out: &mut Vec<u8>,
    ) -> Result<bool, CodecError> {
        let ([luma, blue, red], [width, height]) = picture.planes();
        let plane = |bytes: &[u8]| bytes.as_ptr().cast_mut();
        let source = SSourcePicture {
            iColorFormat: videoFormatI420,
            iStride: [width, width / 2, width / 2, 0],
            pData: [plane(luma), plane(blue), plane(red), std::ptr::null_mut()],
            iPicWidth: width,
            iPicHeight: height,
            uiTimeStamp: at_ms,
            ..SSourcePicture::default()
        };
        let encode = self.calls.EncodeFrame.expect(COMPLETE);
        // SAFETY: the encoder is valid and initialised. The planes have the size and strides that are named (`Picture`),
        // outlive the call, and are only read by it.
        check("encode", unsafe { encode(self.encoder, &raw const source, &raw mut *self.out) })?;
        let layers = usize::try_from(self.out.iLayerNum).unwrap_or(0);
        for layer in self.out.sLayerInfo.iter().take(layers) {
            let units = usize::try_from(layer.iNalCount).unwrap_or(0);
            // SAFETY: the encoder names so many lengths, and so many bytes in a row, in memory of its own that stays as
            // it is until the next call.
            out.extend_from_slice(unsafe {
                let lengths = std::slice::from_raw_parts(layer.pNalLengthInByte, units);
                let len = lengths.iter().map(|len| usize::try_from(*len).unwrap_or(0)).sum();
                std::slice::from_raw_parts(layer.pBsBuf, len)
            });
        }
        Ok(self.out.eFrameType == videoFrameTypeIDR)
    }

    /// `value` has the type that the option is documented to take.
    fn set<T>(&mut self, what: &'static str, option: c_int, mut value: T) -> Result<(), CodecError> {
        let set = self.calls.SetOption.expect(COMPLETE);
        // SAFETY: the encoder is valid; the option is one of those above, each called with the type it reads
        // (`codec_app_def.h`: `int` for the trace level, `SBitrateInfo`, `float` for the frame rate).
        check(what, unsafe { set(self.encoder, option, (&raw mut value).cast::<c_void>()) })
    }
}

impl Drop for Codec {
    fn drop(&mut self) {
        let uninitialize = self.calls.Uninitialize.expect(COMPLETE);
        // SAFETY: the encoder is valid until here, and nobody else has it.
        unsafe {
            uninitialize(self.encoder);
            self.api.WelsDestroySVCEncoder(self.encoder);
        }
    }
}

fn check(what: &'static str, code: c_int) -> Result<(), CodecError> {
    if code == 0 { Ok(()) } else { Err(CodecError { what, code }) }
}
