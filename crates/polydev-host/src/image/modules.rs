//! Puts kernel modules into load order from what each module says it depends on.
//!
//! Wrong order makes every `insmod` fail, so the guest would not find its disks.

use std::collections::{BTreeMap, BTreeSet};

use super::elf;

/// Why no order exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// Neither a module nor built in.
    #[error("kernel module {name} (needed by {needed_by}) is neither in the kernel package nor built in")]
    Missing {
        /// The module.
        name: String,
        /// Who asked for it.
        needed_by: String,
    },
    /// Modules that depend on each other.
    #[error("kernel module {0} depends on itself")]
    Cycle(String),
}

/// All of `wanted` and what they need, dependencies first. `depends` holds every loadable module (names with `_`), `builtin` what the kernel has inside.
pub fn load_order(
    wanted: &[String],
    depends: &BTreeMap<String, Vec<String>>,
    builtin: &BTreeSet<String>,
) -> Result<Vec<String>, ModuleError> {
    let mut order = Vec::new();
    for name in wanted {
        visit(&plain_name(name), "the recipe", depends, builtin, &mut Vec::new(), &mut order)?;
    }
    Ok(order)
}

fn visit(
    name: &str,
    needed_by: &str,
    depends: &BTreeMap<String, Vec<String>>,
    builtin: &BTreeSet<String>,
    path: &mut Vec<String>,
    order: &mut Vec<String>,
) -> Result<(), ModuleError> {
    if builtin.contains(name) || order.iter().any(|done| done == name) {
        return Ok(());
    }
    if path.iter().any(|open| open == name) {
        return Err(ModuleError::Cycle(name.to_owned()));
    }
    let Some(needs) = depends.get(name) else {
        return Err(ModuleError::Missing { name: name.to_owned(), needed_by: needed_by.to_owned() });
    };
    path.push(name.to_owned());
    for need in needs {
        visit(need, name, depends, builtin, path, order)?;
    }
    path.pop();
    order.push(name.to_owned());
    Ok(())
}

/// Module names are compared with `_` for `-`, as the kernel does.
pub(crate) fn plain_name(name: &str) -> String {
    name.replace('-', "_")
}

/// The `depends=` field of a module's `.modinfo` section.
pub(crate) fn depends_of(module: &[u8]) -> Option<Vec<String>> {
    let info = elf::section(module, ".modinfo")?;
    let field = info.split(|b| *b == 0).find_map(|field| field.strip_prefix(b"depends="))?;
    let text = std::str::from_utf8(field).ok()?;
    Some(text.split(',').filter(|name| !name.is_empty()).map(plain_name).collect())
}
