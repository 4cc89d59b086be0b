//! A desktop program without a desktop: answers to what it is told with pictures that hold nothing but their number.

use std::io;

use polydev_core::desktop::{
    Cutter, DESKTOP_VERSION, Frame, FromDesktop, InputEvent, TO_DESKTOP_MAX, ToDesktop, framed,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::compat::Compat;

const SIZE: (u16, u16) = (1280, 800);

/// Speaks the protocol until the other side goes. Each of `watch`, `keyframe`, `resize` and `input` is answered by one
/// frame; text typed comes back as clipboard text.
pub(super) async fn serve(mut stream: Compat<yamux::Stream>) -> io::Result<()> {
    let (mut width, mut height) = SIZE;
    let mut seq = 0_u32;
    tell(&mut stream, &FromDesktop::Hello { version: DESKTOP_VERSION, width, height }).await?;
    let mut cutter = Cutter::new(TO_DESKTOP_MAX);
    let mut chunk = [0; 4096];
    loop {
        while let Some(message) = cutter.next().map_err(io::Error::other)? {
            let mut input_seq = 0;
            let key = match ToDesktop::decode(message).map_err(io::Error::other)? {
                ToDesktop::Watch(true) | ToDesktop::Keyframe => true,
                ToDesktop::Resize { width: w, height: h, .. } => {
                    (width, height) = (w, h);
                    true
                }
                ToDesktop::Input { seq, event } => {
                    input_seq = seq;
                    if let InputEvent::Text { text } = event {
                        tell(&mut stream, &FromDesktop::Clipboard(text)).await?;
                    }
                    false
                }
                ToDesktop::Watch(false)
                | ToDesktop::Rate { .. }
                | ToDesktop::Clipboard(_)
                | ToDesktop::Wipe => {
                    continue;
                }
            };
            seq += 1;
            let data = picture(key, seq);
            let (captured_us, work_us, keep_alive) = (0, 1000, false);
            let frame = Frame { key, keep_alive, seq, captured_us, work_us, input_seq, width, height, data };
            tell(&mut stream, &FromDesktop::Frame(frame)).await?;
        }
        match stream.read(&mut chunk).await? {
            0 => return Ok(()),
            count => cutter.extend(&chunk[..count]),
        }
    }
}

/// The units of an H.264 picture (Annex B), but with the number as text in place of what would be a picture. As in a real
/// stream, a keyframe begins with parameter sets.
fn picture(key: bool, seq: u32) -> Vec<u8> {
    const PARAMETER_SETS: &[u8] = b"\0\0\0\x01\x67\x42\xe0\x1f\x8c\0\0\0\x01\x68\xce\x3c\x80";
    const IDR: &[u8] = b"\0\0\0\x01\x65";
    const DELTA: &[u8] = b"\0\0\0\x01\x41";
    let number = format!("picture {seq}");
    if key { [PARAMETER_SETS, IDR, number.as_bytes()].concat() } else { [DELTA, number.as_bytes()].concat() }
}

async fn tell(stream: &mut Compat<yamux::Stream>, message: &FromDesktop) -> io::Result<()> {
    stream.write_all(&framed(&message.encode())).await?;
    stream.flush().await
}
