//! stub
use std::rc::Rc;
use polydev_core::wire::*;
use crate::{agent::Agent, mux::Stream, control::refuse};
#[derive(Default)]
pub(crate) struct Desktop;
impl Desktop { pub(crate) fn state(&self) -> DesktopState { DesktopState::default() } }
pub(crate) fn start(_: &Rc<Agent>, _: u16, _: u16) -> Result<Reply, Refusal> { Err(refuse(ErrorCode::Conflict, "no desktop")) }
pub(crate) async fn serve_vnc(_: &Rc<Agent>, _: Stream) {}
