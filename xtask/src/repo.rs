//! Places in the repository and on the machine. Our own variables begin with `XTASK_`: the controller refuses any
//! `POLYDEV_` variable that it does not know.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository's root")
}

/// Where cargo builds.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Downloads, images and tools that outlive a clean checkout.
pub(crate) fn cache_dir() -> PathBuf {
    env::var_os("XTASK_CACHE_DIR").map_or_else(|| PathBuf::from("/var/cache/polydev"), PathBuf::from)
}

/// Golden images.
pub(crate) fn image_dir() -> PathBuf {
    env::var_os("POLYDEV_IMAGE_DIR").map_or_else(|| cache_dir().join("images"), PathBuf::from)
}

/// State of what `make up` starts; it is kept from one start to the next.
pub(crate) fn state_dir() -> PathBuf {
    env::var_os("XTASK_STATE_DIR").map_or_else(|| root().join(".polydev"), PathBuf::from)
}
