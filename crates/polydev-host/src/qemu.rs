//! Starts browser VMs from a saved one: QEMU's control protocol, and templates (memory and device state on disk).
//!
//! A template is made once per image, guest programs, machine size and QEMU version:
//!
//! ```text
//! Templates::begin ─▶ Draft: QEMU with Draft::arguments() ─▶ guest ready and quiet ─▶ Draft::finish ─▶ Template
//! Templates::find  ─▶ Template: QEMU with Template::arguments() ─▶ Template::restore ─▶ the agent answers
//! ```
//!
//! Clones map the template's memory file privately: they share its pages and never write to it. A clone is not one of
//! its own before its agent has taken an identity.

pub mod qmp;
pub mod template;

pub use qmp::{Qmp, QmpError};
pub use template::{Draft, Template, TemplateError, TemplateSpec, Templates};
