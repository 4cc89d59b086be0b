//! Reads the head of an HTTP message and not a byte beyond: what follows belongs to somebody else.

use std::io;

use tokio::{io::AsyncReadExt, net::TcpStream};
use zeroize::Zeroizing;

/// Longest head.
const HEAD_MAX: usize = 16 << 10;
const END: &[u8] = b"\r\n\r\n";

/// Why there is no head.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeadError {
    /// The other side ended first.
    #[error("ended before the end of the head")]
    Ended,
    /// It is too long.
    #[error("the head is longer than {HEAD_MAX} bytes")]
    TooLong,
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Everything up to and including the empty line. Its memory is wiped when dropped: heads carry credentials.
pub(super) async fn read_head(stream: &mut TcpStream) -> Result<Zeroizing<Vec<u8>>, HeadError> {
    let mut head = Zeroizing::new(Vec::with_capacity(HEAD_MAX));
    let mut seen = Zeroizing::new(vec![0; HEAD_MAX]);
    loop {
        let room = HEAD_MAX - head.len();
        if room == 0 {
            return Err(HeadError::TooLong);
        }
        // Looked at before it is taken, so that what comes behind the head stays with the kernel.
        let available = stream.peek(&mut seen[..room]).await?;
        if available == 0 {
            return Err(HeadError::Ended);
        }
        let before = head.len();
        head.extend_from_slice(&seen[..available]);
        let from = before.saturating_sub(END.len() - 1);
        let end = head[from..].windows(END.len()).position(|part| part == END);
        if let Some(at) = end {
            head.truncate(from + at + END.len());
        }
        let taken = head.len() - before;
        stream.read_exact(&mut seen[..taken]).await?;
        if end.is_some() {
            return Ok(head);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        near.set_nodelay(true).unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_head_in_pieces_is_read_whole_and_what_follows_stays() {
        let (mut near, mut far) = pair().await;
        let reading = tokio::spawn(async move {
            let head = read_head(&mut far).await.unwrap();
            let mut rest = String::new();
            far.read_to_string(&mut rest).await.unwrap();
            (head, rest)
        });
        for byte in b"GET / HTTP/1.1\r\nHost: a\r\n\r" {
            near.write_all(&[*byte]).await.unwrap();
        }
        near.write_all(b"\nfollows\r\n\r\n").await.unwrap();
        drop(near);
        let (head, rest) = reading.await.unwrap();
        assert_eq!(*head, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(rest, "follows\r\n\r\n");
    }

    #[tokio::test]
    async fn an_endless_head_and_one_cut_short_are_errors() {
        let (mut near, mut far) = pair().await;
        near.write_all(&vec![b'a'; HEAD_MAX + 1]).await.unwrap();
        assert!(matches!(read_head(&mut far).await, Err(HeadError::TooLong)));
        let (mut near, mut far) = pair().await;
        near.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        drop(near);
        assert!(matches!(read_head(&mut far).await, Err(HeadError::Ended)));
    }
}
