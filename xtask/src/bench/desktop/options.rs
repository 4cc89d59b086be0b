//! What `bench desktop` can be asked.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};

use super::{Lane, Scene, Size};

/// Time with nothing changing.
const IDLE: Duration = Duration::from_secs(60);
/// Time over a bad network.
const NETWORK: Duration = Duration::from_secs(60);
const QUICK: Duration = Duration::from_secs(5);

/// What is measured, and for how long.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) json: Option<PathBuf>,
    pub(crate) enforce: bool,
    pub(super) lanes: Vec<Lane>,
    pub(super) scenes: Vec<Scene>,
    pub(super) sizes: Vec<Size>,
    /// Page, guest programs and image are taken as they were built before.
    pub(super) as_built: bool,
    /// Whether the bad network is tried, too.
    pub(super) network: bool,
    /// Nothing but the path that loses packets, so many times, each time other ones.
    pub(super) lossy: Option<u64>,
    pub(super) idle: Duration,
    pub(super) network_time: Duration,
    time: Option<Duration>,
}

impl Options {
    pub(crate) fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            json: None,
            enforce: false,
            lanes: Lane::ALL.to_vec(),
            scenes: Scene::ALL.to_vec(),
            sizes: Size::ALL.to_vec(),
            as_built: false,
            network: true,
            lossy: None,
            idle: IDLE,
            network_time: NETWORK,
            time: None,
        };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--json" => options.json = Some(value()?.into()),
                "--enforce" => options.enforce = true,
                "--stack" => options.lanes = some(value()?, &Lane::ALL, Lane::name)?,
                "--scene" => options.scenes = some(value()?, &Scene::ALL, Scene::name)?,
                "--size" => options.sizes = some(value()?, &Size::ALL, Size::name)?,
                "--seconds" => {
                    let seconds = value()?.parse().context("--seconds is a number")?;
                    options.time = Some(Duration::from_secs(seconds));
                }
                "--as-built" => options.as_built = true,
                "--no-network" => options.network = false,
                "--lossy" => {
                    let times = value()?.parse().context("--lossy is a number")?;
                    (options.lossy, options.lanes, options.sizes) =
                        (Some(times), vec![Lane::WebRtc], Vec::new());
                }
                "--quick" => {
                    options.sizes = vec![Size::Hd];
                    options.time = Some(2 * QUICK);
                    options.idle = QUICK;
                    options.network_time = 2 * QUICK;
                }
                other => bail!(
                    "unknown option {other}; there are --stack, --scene, --size (each a list with commas), --seconds, \
                     --no-network, --lossy TIMES, --as-built, --quick, --json and --enforce"
                ),
            }
        }
        Ok(options)
    }

    pub(super) fn time(&self, scene: Scene) -> Duration {
        self.time.unwrap_or_else(|| scene.time())
    }

    /// Every scene at every size.
    pub(super) fn scenes(&self) -> Vec<(Size, Scene)> {
        let sizes = self.sizes.iter();
        sizes.flat_map(|size| self.scenes.iter().map(move |scene| (*size, *scene))).collect()
    }
}

/// Things by their names, with commas between.
fn some<T: Copy>(names: &str, all: &[T], name_of: fn(T) -> &'static str) -> Result<Vec<T>> {
    let one = |name: &str| {
        let found = all.iter().copied().find(|thing| name_of(*thing) == name);
        let there = || all.iter().map(|thing| name_of(*thing)).collect::<Vec<_>>().join(", ");
        found.with_context(|| format!("no such thing: {name}; there are {}", there()))
    };
    names.split(',').map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options> {
        Options::read(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn without_options_everything_is_measured() {
        let options = read("").expect("nothing is fine");
        assert_eq!(options.scenes().len() * options.lanes.len(), 20);
        assert_eq!(options.time(Scene::Busy), Duration::from_secs(16));
    }

    #[test]
    fn options_choose_and_strange_ones_are_refused() {
        let options = read("--stack webrtc,tigervnc --scene busy --size 1080p --seconds 7").expect("good");
        assert_eq!(options.lanes, [Lane::WebRtc, Lane::TigerVnc]);
        assert_eq!(options.scenes(), [(Size::FullHd, Scene::Busy)]);
        assert_eq!(options.time(Scene::Static), Duration::from_secs(7));
        let options = read("--lossy 5").expect("good");
        assert_eq!((options.lossy, options.scenes().len()), (Some(5), 0));
        for wrong in ["--lossy", "--stack vnc", "--seconds", "--seconds x", "--fast"] {
            read(wrong).expect_err(wrong);
        }
    }
}
