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
            let data = seq.to_be_bytes().to_vec();
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

async fn tell(stream: &mut Compat<yamux::Stream>, message: &FromDesktop) -> io::Result<()> {
    stream.write_all(&framed(&message.encode())).await?;
    stream.flush().await
}
