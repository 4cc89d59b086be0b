//! Content addresses: what goes into a layer or image decides its name, so finished work is found again and nothing stale is.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::command::EPOCH;
use super::manifest::hex;

/// Raised whenever the builder itself makes something different of the same inputs.
const BUILDER: u32 = 1;
const ADDRESS_BYTES: usize = 16;

/// Everything that decides the content of a layer.
#[derive(Debug, Serialize)]
pub(crate) struct LayerInputs<'a, P: Serialize> {
    /// Name of the layer.
    pub(crate) name: &'a str,
    /// Its part of the recipe.
    pub(crate) recipe: P,
    /// Address of the layer below, when the layer is a difference to it.
    pub(crate) below: Option<&'a str>,
    /// Package to version, as the sources offer them now.
    pub(crate) packages: &'a BTreeMap<String, String>,
    /// Hashes of other inputs.
    pub(crate) hashes: BTreeMap<&'a str, String>,
}

/// Address of anything that serialises.
pub(crate) fn address(kind: &str, inputs: &impl Serialize) -> String {
    let text = serde_json::to_vec(&(BUILDER, EPOCH, kind, inputs))
        .expect("inputs are plain strings, numbers, lists and maps with string keys");
    hex(&Sha256::digest(&text)[..ADDRESS_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(version: &str, order: [&str; 2]) -> String {
        let packages = BTreeMap::from([("git".to_owned(), version.to_owned())]);
        let hashes = order.into_iter().map(|name| (name, format!("hash of {name}"))).collect();
        address(
            "layer",
            &LayerInputs { name: "base", recipe: ["git"], below: None, packages: &packages, hashes },
        )
    }

    #[test]
    fn equal_inputs_give_equal_addresses_whatever_their_order() {
        assert_eq!(layer("1", ["a", "b"]), layer("1", ["b", "a"]));
    }

    #[test]
    fn every_input_changes_the_address() {
        assert_ne!(layer("1", ["a", "b"]), layer("2", ["a", "b"]));
        assert_ne!(layer("1", ["a", "b"]), layer("1", ["a", "c"]));
        assert_ne!(address("layer", &"x"), address("image", &"x"));
    }

    #[test]
    fn an_address_is_stable_across_releases_of_this_crate() {
        assert_eq!(layer("1", ["a", "b"]), "2f6806f368df4a862cc62ee0b7e9db38");
    }
}
