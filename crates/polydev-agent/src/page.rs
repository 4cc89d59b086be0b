//! stub
use std::rc::Rc;
use polydev_core::wire::*;
use crate::{agent::Agent, control::refuse};
pub(crate) fn open(_: &Rc<Agent>, _: String) -> Result<Reply, Refusal> { Err(refuse(ErrorCode::Conflict, "no desktop")) }
