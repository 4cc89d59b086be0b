//! What the pointer looks like and where it is.

use std::time::{Duration, Instant};

use polydev_core::desktop::{CURSOR_SIDE_MAX, CursorShape, FromDesktop};
use x11rb::{
    protocol::{
        xfixes::{ConnectionExt as _, GetCursorImageReply},
        xproto::{ConnectionExt as _, Window},
    },
    rust_connection::RustConnection,
};

use super::screen::ScreenError;

/// How often the pointer's place is asked for at most. Only while something happens: X does not tell.
const PLACE_PAUSE: Duration = Duration::from_millis(33);

/// What the host knows of the pointer.
#[derive(Debug)]
pub(crate) struct Cursor {
    shape_is_new: bool,
    place: Option<(i16, i16)>,
    /// When to ask for the place again.
    ask: Option<Instant>,
    asked: Option<Instant>,
}

impl Cursor {
    /// The host knows nothing.
    pub(crate) fn new(now: Instant) -> Self {
        Self { shape_is_new: true, place: None, ask: Some(now), asked: None }
    }

    /// It looks different now.
    pub(crate) fn shape_changed(&mut self) {
        self.shape_is_new = true;
    }

    /// Something happened that may have moved it.
    pub(crate) fn may_have_moved(&mut self, now: Instant) {
        let earliest = self.asked.map_or(now, |asked| (asked + PLACE_PAUSE).max(now));
        self.ask.get_or_insert(earliest);
    }

    /// When there will be something to say.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        if self.shape_is_new { Some(now) } else { self.ask }
    }

    /// What the host does not know yet.
    pub(crate) fn news(
        &mut self,
        x: &RustConnection,
        root: Window,
        now: Instant,
    ) -> Result<Option<FromDesktop>, ScreenError> {
        if std::mem::take(&mut self.shape_is_new) {
            let image = x.xfixes_get_cursor_image()?.reply()?;
            return Ok(Some(FromDesktop::CursorShape(shape(&image))));
        }
        if self.ask.is_some_and(|at| at <= now) {
            self.ask = None;
            self.asked = Some(now);
            let pointer = x.query_pointer(root)?.reply()?;
            let place = (pointer.root_x, pointer.root_y);
            if self.place.replace(place) != Some(place) {
                return Ok(Some(FromDesktop::CursorMoved { x: place.0, y: place.1 }));
            }
        }
        Ok(None)
    }
}

fn shape(image: &GetCursorImageReply) -> CursorShape {
    let (width, height) = (image.width.min(CURSOR_SIDE_MAX), image.height.min(CURSOR_SIDE_MAX));
    let rows = image.cursor_image.chunks_exact(usize::from(image.width).max(1)).take(usize::from(height));
    let pixels: Vec<u32> = rows.flat_map(|row| &row[..usize::from(width)]).copied().collect();
    if pixels.iter().all(|pixel| pixel >> 24 == 0) {
        return CursorShape { width: 0, height: 0, hot_x: 0, hot_y: 0, rgba: Vec::new() };
    }
    let rgba = pixels.into_iter().flat_map(straight).collect();
    let hot = |spot: u16, side: u16| spot.min(side - 1);
    CursorShape { width, height, hot_x: hot(image.xhot, width), hot_y: hot(image.yhot, height), rgba }
}

/// Red, green, blue and alpha of a pixel whose colours were multiplied by its alpha.
fn straight(pixel: u32) -> [u8; 4] {
    let [alpha, red, green, blue] = pixel.to_be_bytes();
    let divide = |colour: u8| match u16::from(alpha) {
        0 => 0,
        alpha => u8::try_from((u16::from(colour) * 255 + alpha / 2) / alpha).unwrap_or(u8::MAX),
    };
    [divide(red), divide(green), divide(blue), alpha]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u16, height: u16, pixel: u32) -> GetCursorImageReply {
        let cursor_image = vec![pixel; usize::from(width) * usize::from(height)];
        GetCursorImageReply { width, height, xhot: width - 1, yhot: 1, cursor_image, ..Default::default() }
    }

    #[test]
    fn colours_are_given_without_their_alpha() {
        assert_eq!(straight(0x8080_4000), [255, 128, 0, 128]);
        assert_eq!(straight(0xff12_3456), [0x12, 0x34, 0x56, 255]);
        assert_eq!(straight(0), [0; 4]);
        // More colour than alpha is no colour: a client may say anything.
        assert_eq!(straight(0x01ff_ffff), [255, 255, 255, 1]);
    }

    #[test]
    fn a_pointer_that_is_too_large_is_cut() {
        let shape = shape(&image(300, 2, 0xff00_0000));
        assert_eq!((shape.width, shape.height, shape.hot_x, shape.hot_y), (256, 2, 255, 1));
        assert_eq!(shape.rgba.len(), 256 * 2 * 4);
    }

    #[test]
    fn a_pointer_that_cannot_be_seen_has_no_size() {
        let shape = shape(&image(16, 16, 0));
        assert_eq!((shape.width, shape.height, shape.rgba.len()), (0, 0, 0));
    }

    #[test]
    fn the_place_is_asked_for_no_more_often_than_needed() {
        let now = Instant::now();
        let mut cursor = Cursor { shape_is_new: false, place: None, ask: None, asked: Some(now) };
        assert_eq!(cursor.next(now), None);
        cursor.may_have_moved(now);
        cursor.may_have_moved(now + Duration::from_millis(5));
        assert_eq!(cursor.next(now), Some(now + PLACE_PAUSE));
    }
}
