//! Places in the guest that provider definitions refer to.

use std::path::Path;

use polydev_core::provider::Placeholders;

/// Where the demo and test layer keeps its certificate authority.
const TEST_CA: &str = "etc/ssl/certs/polydev-demo-ca.pem";

/// The fixed places, and the test authority when the layer on top of the image brings one.
pub(crate) fn places(overlay_dir: Option<&Path>) -> Placeholders {
    let has_ca = overlay_dir.is_some_and(|dir| dir.join(TEST_CA).is_file());
    Placeholders { test_ca: has_ca.then(|| format!("/{TEST_CA}")), ..Placeholders::default() }
}
