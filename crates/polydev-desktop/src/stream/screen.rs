//! Reads the X screen: what was damaged, and the pixels of the rows it lies in.

use std::{os::fd::AsFd, ptr::NonNull};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};
use x11rb::{
    connection::Connection,
    errors::{ConnectError, ConnectionError, ReplyError, ReplyOrIdError},
    protocol::{
        damage::{ConnectionExt as _, Damage, ReportLevel},
        shm::{self, ConnectionExt as _, Seg},
        xfixes::{ConnectionExt as _, CursorNotifyMask, Region},
        xproto::{ChangeWindowAttributesAux, ConnectionExt as _, EventMask, ImageFormat, ImageOrder, Window},
    },
    rust_connection::RustConnection,
};

/// Rows of one block of the encoder: what is read is rounded to them.
const BLOCK: u16 = 16;
const PIXEL: usize = 4;

/// The display cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScreenError {
    /// It is not there.
    #[error("no display: {0}")]
    Connect(#[from] ConnectError),
    /// It went away.
    #[error("display gone: {0}")]
    Connection(#[from] ConnectionError),
    /// It refused a request.
    #[error("display refused: {0}")]
    Reply(ReplyError),
    /// No id is left.
    #[error("display refused: {0}")]
    Id(#[from] ReplyOrIdError),
    /// Pixels are not four bytes of blue, green, red and nothing.
    #[error("display has pixels of an unknown form")]
    Pixels,
    /// No memory to share with the server.
    #[error("shared memory: {0}")]
    Memory(#[from] rustix::io::Errno),
}

impl From<ReplyError> for ScreenError {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::ConnectionError(error) => Self::Connection(error),
            other @ ReplyError::X11Error(_) => Self::Reply(other),
        }
    }
}

/// Rows that were read.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    /// The first one, a multiple of 16.
    pub(crate) top: usize,
    /// Whole rows of the screen's (even) width.
    pub(crate) bytes: &'a [u8],
}

/// The root window and memory that the server shares.
pub(crate) struct Screen<'a> {
    x: &'a RustConnection,
    root: Window,
    damage: Damage,
    region: Region,
    segment: Segment<'a>,
    width: u16,
    height: u16,
}

/// Shared memory for one whole picture.
struct Segment<'a> {
    x: &'a RustConnection,
    id: Seg,
    at: NonNull<std::ffi::c_void>,
    len: usize,
}

impl<'a> Screen<'a> {
    /// Asks for the damage of the whole screen, its size and its pointer.
    pub(crate) fn open(x: &'a RustConnection, number: usize) -> Result<Self, ScreenError> {
        x.damage_query_version(1, 1)?.reply()?;
        x.xfixes_query_version(5, 0)?.reply()?;
        x.shm_query_version()?.reply()?;
        let setup = x.setup();
        let root = setup.roots[number].root;
        let depth = setup.roots[number].root_depth;
        let four_bytes = setup
            .pixmap_formats
            .iter()
            .any(|format| format.depth == depth && format.bits_per_pixel == 32 && format.scanline_pad == 32);
        if !four_bytes || setup.image_byte_order != ImageOrder::LSB_FIRST {
            return Err(ScreenError::Pixels);
        }
        let events = ChangeWindowAttributesAux::new().event_mask(EventMask::STRUCTURE_NOTIFY);
        x.change_window_attributes(root, &events)?.check()?;
        x.xfixes_select_cursor_input(root, CursorNotifyMask::DISPLAY_CURSOR)?.check()?;
        let (damage, region) = (x.generate_id()?, x.generate_id()?);
        x.xfixes_create_region(region, &[])?.check()?;
        x.damage_create(damage, root, ReportLevel::NON_EMPTY)?.check()?;
        let (width, height) = size(x, root)?;
        Ok(Self { x, root, damage, region, segment: Segment::new(x, width, height)?, width, height })
    }

    /// Width and height, both even.
    pub(crate) fn size(&self) -> (u16, u16) {
        (self.width, self.height)
    }

    /// The root window.
    pub(crate) fn root(&self) -> Window {
        self.root
    }

    /// Looks at the size again; says whether it is another one.
    pub(crate) fn refresh(&mut self) -> Result<bool, ScreenError> {
        let (width, height) = size(self.x, self.root)?;
        if (width, height) == (self.width, self.height) {
            return Ok(false);
        }
        self.segment = Segment::new(self.x, width, height)?;
        (self.width, self.height) = (width, height);
        Ok(true)
    }

    /// Reads the rows that changed since the last time, or all of them. `None` if nothing did.
    pub(crate) fn grab(&mut self, all: bool) -> Result<Option<Rows<'_>>, ScreenError> {
        // Before the pixels are read: what changes while they are stays pending.
        self.x.damage_subtract(self.damage, x11rb::NONE, self.region)?;
        let (top, bottom) = if all {
            (0, self.height)
        } else {
            let extents = self.x.xfixes_fetch_region(self.region)?.reply()?.extents;
            band(extents.y, extents.height, self.height)
        };
        if top >= bottom {
            return Ok(None);
        }
        let (offset, rows) = (usize::from(top) * self.stride(), usize::from(bottom - top));
        self.x
            .shm_get_image(
                self.root,
                0,
                i16::try_from(top).unwrap_or(i16::MAX),
                self.width,
                bottom - top,
                u32::MAX,
                ImageFormat::Z_PIXMAP.into(),
                self.segment.id,
                u32::try_from(offset).unwrap_or(u32::MAX),
            )?
            .reply()?;
        let bytes = &self.segment.bytes()[offset..offset + rows * self.stride()];
        Ok(Some(Rows { top: usize::from(top), bytes }))
    }

    fn stride(&self) -> usize {
        usize::from(self.width) * PIXEL
    }
}

impl<'a> Segment<'a> {
    fn new(x: &'a RustConnection, width: u16, height: u16) -> Result<Self, ScreenError> {
        let len = usize::from(width) * usize::from(height) * PIXEL;
        let memory = memfd_create("polydev-screen", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, len as u64)?;
        // SAFETY: a new mapping at a place of the kernel's choice, of memory that nobody else has a name for.
        let at =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, memory.as_fd(), 0)? };
        let at = NonNull::new(at).ok_or(rustix::io::Errno::NOMEM)?;
        let id = x.generate_id()?;
        let segment = Self { x, id, at, len };
        x.shm_attach_fd(id, memory, false)?.check()?;
        Ok(segment)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as `self` and has this length. The server writes to it only while it answers
        // a `GetImage`, which `Screen::grab` waits for with `Screen` borrowed mutably.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), self.len) }
    }
}

impl Drop for Segment<'_> {
    fn drop(&mut self) {
        // A display that is gone has let go of it already.
        let _ = shm::detach(self.x, self.id).map(x11rb::cookie::VoidCookie::ignore_error);
        // SAFETY: made by `mmap` with this length; nothing borrows from it any more.
        let _ = unsafe { munmap(self.at.as_ptr(), self.len) };
    }
}

fn size(x: &RustConnection, root: Window) -> Result<(u16, u16), ScreenError> {
    let geometry = x.get_geometry(root)?.reply()?;
    // Colours are kept for squares of four pixels.
    Ok((geometry.width & !1, geometry.height & !1))
}

/// The blocks of rows that contain `height` rows from `y` on.
fn band(y: i16, height: u16, screen: u16) -> (u16, u16) {
    let top = u16::try_from(y.max(0)).unwrap_or(0).min(screen);
    let bottom =
        u16::try_from((i32::from(y) + i32::from(height)).clamp(0, i32::from(screen))).unwrap_or(screen);
    if top >= bottom {
        return (0, 0);
    }
    (top / BLOCK * BLOCK, bottom.next_multiple_of(BLOCK).min(screen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_whole_blocks_inside_the_screen() {
        assert_eq!(band(0, 0, 720), (0, 0));
        assert_eq!(band(17, 1, 720), (16, 32));
        assert_eq!(band(15, 2, 720), (0, 32));
        assert_eq!(band(-8, 9, 720), (0, 16));
        assert_eq!(band(-8, 8, 720), (0, 0));
        assert_eq!(band(700, 100, 718), (688, 718));
        assert_eq!(band(720, 16, 720), (0, 0));
        assert_eq!(band(0, u16::MAX, 2160), (0, 2160));
    }
}
