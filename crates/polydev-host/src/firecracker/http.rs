//! As much of HTTP/1.1 (RFC 9112) as Firecracker speaks: one request, one answer with `Content-Length`.

use std::io;

use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
};

/// Longest header line taken.
const LINE_MAX: u64 = 8 << 10;
/// Most header lines taken.
const LINES_MAX: usize = 64;
/// Largest body taken: the state of a VM with everything in it is some kilobytes.
const BODY_MAX: usize = 1 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Sends a request and reads its answer.
pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
) -> io::Result<Answer> {
    let mut stream = BufReader::new(stream);
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n").into_bytes();
    if let Some(body) = body {
        request
            .extend(format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()).bytes());
    }
    request.extend(b"\r\n");
    request.extend(body.unwrap_or_default());
    stream.get_mut().write_all(&request).await?;
    read_answer(&mut stream).await
}

async fn read_answer(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Answer> {
    let status_line = line(stream).await?;
    let mut words = status_line.splitn(3, ' ');
    let status = match (words.next(), words.next().map(str::parse)) {
        (Some("HTTP/1.1" | "HTTP/1.0"), Some(Ok(status))) => status,
        _ => return Err(invalid("no HTTP status line")),
    };
    let mut length = 0;
    for _ in 0..LINES_MAX {
        let header = line(stream).await?;
        if header.is_empty() {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            return Ok(Answer { status, body });
        }
        let Some((name, value)) = header.split_once(':') else {
            return Err(invalid("a header without a colon"));
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| invalid("a length that is no number"))?;
            if length > BODY_MAX {
                return Err(invalid("a body over the limit"));
            }
        }
    }
    Err(invalid("too many headers"))
}

async fn line(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut bytes = Vec::new();
    stream.take(LINE_MAX).read_until(b'\n', &mut bytes).await?;
    match bytes.strip_suffix(b"\n") {
        Some(line) => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            String::from_utf8(line.to_vec()).map_err(|_| invalid("a header that is no text"))
        }
        None if bytes.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
        None => Err(invalid("a header line over the limit")),
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(text: &str) -> io::Result<Answer> {
        read_answer(&mut text.as_bytes()).await
    }

    #[tokio::test]
    async fn answers_are_read_with_their_length() {
        let answer = read("HTTP/1.1 400 \r\nServer: Firecracker API\r\ncontent-length: 2\r\n\r\n{}rest")
            .await
            .unwrap();
        assert_eq!(answer, Answer { status: 400, body: b"{}".to_vec() });
        assert_eq!(read("HTTP/1.1 204 \r\n\r\n").await.unwrap().status, 204);
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        for text in [
            "",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Le",
        ] {
            read(text).await.unwrap_err();
        }
        read(&format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "a".repeat(9000))).await.unwrap_err();
        read(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(65))).await.unwrap_err();
    }
}
