//! One whole picture of a VNC server (RFC 6143).

use std::collections::HashSet;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What was seen.
pub(crate) struct Picture {
    /// Width and height in pixels.
    pub(crate) size: (u16, u16),
    /// How many different ones.
    pub(crate) colours: usize,
}

impl Picture {
    /// Asks for one.
    pub(crate) async fn of(mut vnc: impl AsyncRead + AsyncWrite + Unpin) -> Self {
        let mut version = [0; 12];
        vnc.read_exact(&mut version).await.unwrap();
        assert_eq!(&version, b"RFB 003.008\n");
        vnc.write_all(&version).await.unwrap();
        let kinds = vnc.read_u8().await.unwrap();
        vnc.read_exact(&mut vec![0; kinds.into()]).await.unwrap();
        vnc.write_u8(1).await.unwrap();
        assert_eq!(vnc.read_u32().await.unwrap(), 0, "no password is asked for");
        // Others may look, too.
        vnc.write_u8(1).await.unwrap();
        let (width, height) = (vnc.read_u16().await.unwrap(), vnc.read_u16().await.unwrap());
        vnc.read_exact(&mut [0; 16]).await.unwrap();
        let name = vnc.read_u32().await.unwrap();
        vnc.read_exact(&mut vec![0; name.try_into().unwrap()]).await.unwrap();
        // Plain pixels only, then everything once.
        vnc.write_all(&[2, 0, 0, 1, 0, 0, 0, 0]).await.unwrap();
        let [w, h] = [width.to_be_bytes(), height.to_be_bytes()];
        vnc.write_all(&[&[3, 0, 0, 0, 0, 0][..], &w, &h].concat()).await.unwrap();
        assert_eq!(vnc.read_u8().await.unwrap(), 0, "an update");
        vnc.read_u8().await.unwrap();
        let mut colours = HashSet::new();
        for _ in 0..vnc.read_u16().await.unwrap() {
            let mut rectangle = [0; 12];
            vnc.read_exact(&mut rectangle).await.unwrap();
            let size = |at: usize| usize::from(u16::from_be_bytes([rectangle[at], rectangle[at + 1]]));
            let mut pixels = vec![0; size(4) * size(6) * 4];
            vnc.read_exact(&mut pixels).await.unwrap();
            colours.extend(pixels.chunks_exact(4).map(<[u8]>::to_vec));
        }
        Self { size: (width, height), colours: colours.len() }
    }
}
