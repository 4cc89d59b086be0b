//! stub
use std::rc::Rc;
use polydev_core::wire::*;
use crate::{agent::Agent, control::refuse};
#[derive(Default)]
pub(crate) struct LoginSlot;
impl LoginSlot { pub(crate) fn is_running(&self) -> bool { false } }
fn no() -> Result<Reply, Refusal> { Err(refuse(ErrorCode::Conflict, "no login")) }
pub(crate) fn start(_: &Rc<Agent>, _: LoginSpec) -> Result<Reply, Refusal> { no() }
pub(crate) async fn input(_: &Rc<Agent>, _: String) -> Result<Reply, Refusal> { no() }
pub(crate) async fn replay(_: &Rc<Agent>, _: &str) -> Result<Reply, Refusal> { no() }
pub(crate) async fn cancel(_: &Rc<Agent>) -> Result<Reply, Refusal> { no() }
pub(crate) fn shim_called(_: &Rc<Agent>, _: String) {}
