//! Golden images: builds, opens, checks and removes them.
//!
//! A recipe (`images/*.toml`) becomes three read-only layers (`base`, `desktop`, `tools`), a kernel and a `modules.cpio`. Every function here blocks:
//! call it from a thread of its own. Nothing here touches VMs, and no host name of a mirror or registry is written into an image.

mod address;
mod apt;
mod base;
mod build;
mod command;
pub(crate) mod cpio;
mod desktop;
mod elf;
mod erofs;
mod error;
mod glob;
mod kernel;
mod lease;
mod manifest;
mod modules;
mod mount;
mod node;
mod recipe;
mod store;
mod tools;
mod tree;
pub(crate) mod verify;

pub use build::{BuildOptions, build};
pub use command::{Cancel, Progress, ProgressFn};
pub use error::ImageError;
pub use lease::{Image, open, open_current};
pub(crate) use manifest::SCHEMA;
pub use manifest::{ImageManifest, KernelEntry, LayerEntry};
pub use modules::{ModuleError, load_order};
pub use recipe::{Account, Check, Layer, Mirror, Node, Os, Recipe, Tool};
pub use store::{GcReport, ImageSummary, gc, list};
pub use verify::{BootCheck, VerifyOptions, VerifyReport, verify};

/// Where images are unless the operator says otherwise.
pub const DEFAULT_IMAGE_DIR: &str = "/var/cache/polydev/images";
/// The layers of every image, lowest first.
pub const LAYERS: [&str; 3] = ["base", "desktop", "tools"];
