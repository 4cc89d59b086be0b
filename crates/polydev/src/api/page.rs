//! What goes to a page by WebSocket, and how that ends.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::time::timeout;

/// A page that takes nothing for this long is gone.
pub(super) const SEND_LIMIT: Duration = Duration::from_secs(30);
/// How long a page may take for its good-bye.
pub(super) const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// Whether the page took a message in time.
pub(super) async fn sent(
    to_page: &mut SplitSink<WebSocket, Message>,
    message: Message,
    limit: Duration,
) -> bool {
    matches!(timeout(limit, to_page.send(message)).await, Ok(Ok(())))
}

/// Says good-bye and waits for the page's answer.
pub(super) async fn close(
    to_page: &mut SplitSink<WebSocket, Message>,
    from_page: &mut SplitStream<WebSocket>,
    code: u16,
    reason: &'static str,
) {
    say_goodbye(to_page, code, reason).await;
    // Closed with something unread, a connection is reset, and the last words may be lost (RFC 1122, section 4.2.2.13).
    let _ = timeout(FAREWELL_LIMIT, async { while let Some(Ok(_)) = from_page.next().await {} }).await;
}

/// For who goes on listening until the page has answered.
pub(super) async fn say_goodbye(
    to_page: &mut SplitSink<WebSocket, Message>,
    code: u16,
    reason: &'static str,
) {
    let frame = CloseFrame { code, reason: reason.into() };
    // The other side may be gone already.
    let _ = sent(to_page, Message::Close(Some(frame)), SEND_LIMIT).await;
}
