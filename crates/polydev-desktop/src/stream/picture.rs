//! The screen's content as the encoder takes it: planes of brightness and colour (I420, BT.601, limited range).

use yuv::{
    BufferStoreMut, YuvConversionMode, YuvError, YuvPlanarImageMut, YuvRange, YuvStandardMatrix,
    bgra_to_yuv420,
};

/// One picture of even size.
#[derive(Debug)]
pub(crate) struct Picture {
    width: u16,
    height: u16,
    luma: Vec<u8>,
    blue: Vec<u8>,
    red: Vec<u8>,
}

impl Picture {
    /// A black one.
    pub(crate) fn new(width: u16, height: u16) -> Self {
        let (width, height) = (width & !1, height & !1);
        let area = usize::from(width) * usize::from(height);
        let colours = vec![128; area / 4];
        Self { width, height, luma: vec![16; area], blue: colours.clone(), red: colours }
    }

    /// Takes over rows of blue, green, red and one unused byte each, from the (even) row `top` on.
    pub(crate) fn take(&mut self, top: usize, rows: &[u8]) -> Result<(), YuvError> {
        let width = usize::from(self.width);
        let count = rows.len() / (width * 4);
        let luma = top * width..(top + count) * width;
        let colours = top * width / 4..(top + count) * width / 4;
        let mut planes = YuvPlanarImageMut {
            y_plane: BufferStoreMut::Borrowed(&mut self.luma[luma]),
            y_stride: narrow(width),
            u_plane: BufferStoreMut::Borrowed(&mut self.blue[colours.clone()]),
            u_stride: narrow(width / 2),
            v_plane: BufferStoreMut::Borrowed(&mut self.red[colours]),
            v_stride: narrow(width / 2),
            width: narrow(width),
            height: narrow(count),
        };
        let (range, matrix) = (YuvRange::Limited, YuvStandardMatrix::Bt601);
        bgra_to_yuv420(&mut planes, rows, narrow(width * 4), range, matrix, YuvConversionMode::Fast)
    }

    /// Width and height, both even.
    pub(crate) fn size(&self) -> (u16, u16) {
        (self.width, self.height)
    }

    /// Brightness and both colours, with width and height of the first; the others have half of each.
    pub(crate) fn planes(&self) -> ([&[u8]; 3], [i32; 2]) {
        ([&self.luma, &self.blue, &self.red], [self.width.into(), self.height.into()])
    }
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).expect("screens have 16-bit sides")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rows_that_are_given_change() {
        let mut picture = Picture::new(32, 48);
        let red: Vec<u8> = [0, 0, 255, 0].repeat(32 * 16);
        picture.take(16, &red).unwrap();
        let row = |number: usize| picture.luma[number * 32];
        assert_eq!((row(15), row(32)), (16, 16));
        // Red in BT.601, limited range: 81, 90, 240.
        assert!((79..=83).contains(&row(16)) && (79..=83).contains(&row(31)));
        let colour = |plane: &[u8], number: usize| plane[number * 16];
        assert_eq!((colour(&picture.blue, 7), colour(&picture.red, 16)), (128, 128));
        assert!((88..=92).contains(&colour(&picture.blue, 8)));
        assert!((238..=241).contains(&colour(&picture.red, 15)));
    }

    #[test]
    fn an_odd_size_loses_its_last_row_and_column() {
        let picture = Picture::new(33, 49);
        assert_eq!((picture.width, picture.height), (32, 48));
    }
}
