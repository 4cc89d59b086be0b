//! Decodes frames with a decoder that knows nothing of the encoder's state.

use openh264::formats::YUVSource;
use polydev_core::desktop::Frame;

/// The newest picture.
pub(crate) struct Decoder {
    codec: openh264::decoder::Decoder,
    size: (usize, usize),
    rgb: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { codec: openh264::decoder::Decoder::new().unwrap(), size: (0, 0), rgb: Vec::new() }
    }

    pub(crate) fn take(&mut self, frame: &Frame) {
        let yuv = self.codec.decode(&frame.data).unwrap().expect("each frame is a whole picture");
        self.size = yuv.dimensions();
        assert_eq!(self.size, (usize::from(frame.width), usize::from(frame.height)));
        self.rgb.resize(self.size.0 * self.size.1 * 3, 0);
        yuv.write_rgb8(&mut self.rgb);
    }

    /// Whether a pixel is about `0xrrggbb`.
    pub(crate) fn shows(&self, colour: u32, x: usize, y: usize) -> bool {
        let at = (y * self.size.0 + x) * 3;
        let [_, wanted @ ..] = colour.to_be_bytes();
        self.rgb[at..at + 3].iter().zip(wanted).all(|(seen, wanted)| seen.abs_diff(wanted) < 24)
    }
}
