//! Files that are made from others: are they what would be made now?

use std::fs;

use anyhow::{Context, Result};

use crate::{
    compile::{self, Profile},
    repo,
    run::{command, read, run, step},
    setup,
};

const OPENAPI: &str = "openapi/polydev.json";
const WEB_TYPES: &str = "web/src/api/openapi.d.ts";

pub(super) fn is_generated(file: &str) -> bool {
    [OPENAPI, WEB_TYPES].contains(&file)
}

pub(super) fn faults() -> Result<Vec<String>> {
    let (openapi, types) = make()?;
    let stale = |(file, wanted): &(&str, String)| {
        fs::read_to_string(repo::root().join(file)).ok().as_ref() != Some(wanted)
    };
    let made = [(OPENAPI, openapi), (WEB_TYPES, types)];
    Ok(made
        .iter()
        .filter(|file| stale(file))
        .map(|(file, _)| format!("{file}: out of date; run cargo xtask generate"))
        .collect())
}

pub(super) fn write() -> Result<()> {
    let (openapi, types) = make()?;
    for (file, text) in [(OPENAPI, openapi), (WEB_TYPES, types)] {
        let path = repo::root().join(file);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

/// The API description, and the types that the web page takes from it.
fn make() -> Result<(String, String)> {
    step("generated files", || {
        setup::node()?;
        setup::npm_modules("web")?;
        let polydev = compile::controller(Profile::Dev)?;
        let openapi = read(command(polydev).arg("openapi"))?;
        let dir = tempfile::tempdir().context("create a directory")?;
        let (source, target) = (dir.path().join("polydev.json"), dir.path().join("openapi.d.ts"));
        fs::write(&source, &openapi).context("write the API description")?;
        let mut tool = setup::with_node("node");
        tool.arg("node_modules/openapi-typescript/bin/cli.js").arg(&source).arg("-o").arg(&target);
        // Its greeting would end up among our output.
        run(tool.current_dir(repo::root().join("web")).stdout(std::process::Stdio::null()))?;
        Ok((openapi, fs::read_to_string(&target).context("read the generated types")?))
    })
}
