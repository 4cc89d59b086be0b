//! Golden images: build, check, list, clean up.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use polydev_host::image::{self, BootCheck, BuildOptions, Cancel, ImageError, Progress, VerifyOptions};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Builds an image, or finds that it exists, and makes it the current one. Needs root.
    Build(BuildArgs),
    /// Checks an image: hashes, libraries, versions, no trace of the build machine. Needs root.
    Verify(VerifyArgs),
    /// Lists images.
    List,
    /// Removes images and layers that nothing uses.
    Gc(GcArgs),
}

#[derive(Debug, Args)]
pub(super) struct BuildArgs {
    /// What to build.
    #[arg(long, value_name = "FILE", default_value = "images/bookworm.toml")]
    recipe: PathBuf,
    /// Downloads that may be used again; beside the images unless given.
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Package archive in place of the machine's own source; a second one is for security updates.
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Which image; the current one unless given.
    id: Option<String>,
    /// Boots it in QEMU as well.
    #[arg(long)]
    boot: bool,
}

#[derive(Debug, Args)]
pub(super) struct GcArgs {
    /// How many images are kept besides the current one and those in use.
    #[arg(long, default_value_t = 1)]
    keep: usize,
}

pub(super) fn run(config: &Config, command: ImageCommand) -> anyhow::Result<()> {
    let dir = &config.paths.image_dir;
    match command {
        ImageCommand::Build(args) => {
            let mut options = BuildOptions::new(args.recipe, dir);
            options.cache_dir = args.cache_dir.unwrap_or(options.cache_dir);
            options.mirrors = args.mirror;
            let image = cancellable(move |cancel| image::build(&options, cancel, &tell))??;
            println!("{}", image.id());
        }
        ImageCommand::Verify(args) => {
            let image = match &args.id {
                Some(id) => image::open(dir, id)?,
                None => image::open_current(dir)?,
            };
            let options = VerifyOptions { boot: args.boot.then(BootCheck::default) };
            let report = cancellable(move |cancel| image::verify(&image, &options, cancel, &tell))??;
            for line in &report.passed {
                println!("ok\t{line}");
            }
            for line in &report.faults {
                println!("fault\t{line}");
            }
            anyhow::ensure!(report.is_ok(), "the image has {} fault(s)", report.faults.len());
        }
        ImageCommand::List => {
            println!("id\tsuite\tcreated\tstate\tcompressed_bytes");
            for found in image::list(dir)? {
                let state = match (found.current, found.in_use) {
                    (true, _) => "current",
                    (false, true) => "in use",
                    (false, false) => "spare",
                };
                let manifest = &found.manifest;
                let bytes: u64 = manifest.layers.iter().map(|layer| layer.compressed_bytes).sum();
                let created = crate::clock::rfc3339(manifest.created_unix.saturating_mul(1000));
                println!("{}\t{}\t{created}\t{state}\t{bytes}", manifest.id, manifest.suite);
            }
        }
        ImageCommand::Gc(args) => {
            let report = image::gc(dir, args.keep)?;
            for name in report.removed_images.iter().chain(&report.removed_layers) {
                println!("{name}");
            }
            eprintln!(
                "{} bytes freed; {} kept because they are in use",
                report.freed_bytes,
                report.kept_in_use.len()
            );
        }
    }
    Ok(())
}

fn tell(progress: Progress) {
    eprintln!("{progress}");
}

/// Does blocking work that SIGINT and SIGTERM end in order.
fn cancellable<T: Send + 'static>(
    work: impl FnOnce(&Cancel) -> Result<T, ImageError> + Send + 'static,
) -> std::io::Result<Result<T, ImageError>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let cancel = Cancel::default();
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let working = cancel.clone();
        let mut task = tokio::task::spawn_blocking(move || work(&working));
        let ended = loop {
            tokio::select! {
                ended = &mut task => break ended,
                _ = term.recv() => cancel.cancel(),
                _ = interrupt.recv() => cancel.cancel(),
            }
        };
        ended.map_err(std::io::Error::other)
    })
}
