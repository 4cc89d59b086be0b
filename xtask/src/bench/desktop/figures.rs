//! From what was seen to the figures that are shown and promised.

use serde::Serialize;

use super::{Lane, Scene, Size, product::Used, receiver::Seen};
use crate::bench::Row;

/// Fewer barcodes than this make no distribution.
const AGES_MIN: usize = 100;
/// One reading in this many may fail: a picture in which a rate limit left the cells unclear.
const BAD_SHARE: f64 = 0.02;

/// One lane in one scene at one size.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cell {
    pub(super) lane: Lane,
    pub(super) scene: Scene,
    pub(super) size: Size,
    picture_ms: Spread,
    click_ms: Spread,
    clicks_missed: usize,
    pictures_per_second: f64,
    unreadable: usize,
    kbit_per_second: f64,
    /// Everything between the screen and the network, percent of a core.
    server_cpu_percent: f64,
    /// Of our own parts, percent of a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts_cpu_percent: Option<Parts>,
    /// Of the program that reads the screen and encodes it, milliseconds per frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    streamer_cpu_ms_per_frame: Option<f64>,
    /// Of the encoder alone, as the guest itself counts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) encode_cpu_ms_per_frame: Option<f64>,
    /// What the page's browser counted meanwhile.
    browser: serde_json::Value,
    /// What the viewer says it uses.
    path: Option<String>,
    /// The last figures of the controller that the viewer got.
    hub: serde_json::Value,
    /// 1-minute average of runnable processes, before.
    load: f64,
    #[serde(skip)]
    ages: Vec<f64>,
    #[serde(skip)]
    clicks: Vec<f64>,
}

/// CPU of our own parts.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Parts {
    streamer: f64,
    watcher: f64,
    agent: f64,
    controller: f64,
}

/// A distribution in short.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Spread {
    n: usize,
    p5: f64,
    pub(super) p50: f64,
    pub(super) p95: f64,
    max: f64,
}

/// What ran during a cell, besides what was seen.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    /// CPU seconds of a VNC server and its bridge.
    Baseline(f64),
    /// CPU of our parts, frames that went out, CPU seconds of the encoder.
    Product { used: Used, frames: f64, encode: f64 },
}

impl Spread {
    pub(super) fn of(samples: &[f64]) -> Self {
        let row = Row::of("", "", samples, None);
        row.map_or(Self { n: 0, p5: f64::NAN, p50: f64::NAN, p95: f64::NAN, max: f64::NAN }, |row| Self {
            n: samples.len(),
            p5: row.p5,
            p50: row.p50,
            p95: row.p95,
            max: row.max,
        })
    }
}

impl Cell {
    pub(super) fn new(lane: Lane, scene: Scene, size: Size, seen: Seen, work: Work, load: f64) -> Self {
        let share = |seconds: f64| 100.0 * seconds / seen.seconds;
        let (total, parts, streamer_ms, encode_ms) = match work {
            Work::Baseline(seconds) => (seconds, None, None, None),
            Work::Product { used, frames, encode } => (
                used.total(),
                Some(Parts {
                    streamer: share(used.streamer),
                    watcher: share(used.watcher),
                    agent: share(used.agent),
                    controller: share(used.controller),
                }),
                (frames > 0.0).then(|| 1000.0 * used.streamer / frames),
                (frames > 0.0).then(|| 1000.0 * encode / frames),
            ),
        };
        Self {
            lane,
            scene,
            size,
            picture_ms: Spread::of(&seen.ages),
            click_ms: Spread::of(&seen.clicks),
            clicks_missed: seen.missed,
            pictures_per_second: seen.pictures as f64 / seen.seconds,
            unreadable: seen.bad,
            kbit_per_second: seen.grown["bytes"].as_f64().unwrap_or(f64::NAN) * 8.0 / 1000.0 / seen.seconds,
            server_cpu_percent: share(total),
            parts_cpu_percent: parts,
            streamer_cpu_ms_per_frame: streamer_ms,
            encode_cpu_ms_per_frame: encode_ms,
            browser: seen.grown,
            path: seen.path,
            hub: seen.hub,
            load,
            ages: seen.ages,
            clicks: seen.clicks,
        }
    }

    fn name(&self) -> String {
        format!("{} {} {}", self.scene.name(), self.size.name(), self.lane.name())
    }

    /// Why its figures are not to be believed, if so.
    pub(super) fn doubt(&self) -> Option<String> {
        let seen = self.ages.len() + self.unreadable;
        if self.ages.len() < AGES_MIN {
            Some(format!("{}: {} barcodes read, fewer than {AGES_MIN}", self.name(), self.ages.len()))
        } else if self.unreadable as f64 > BAD_SHARE * seen as f64 {
            Some(format!("{}: {} pictures with an unreadable barcode", self.name(), self.unreadable))
        } else {
            None
        }
    }

    fn line(&self) -> Vec<String> {
        let Spread { p5, p50, p95, max, n } = self.picture_ms;
        let number = |value: f64| if value.is_nan() { "-".into() } else { format!("{value:.1}") };
        let maybe = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
        vec![
            self.scene.name().into(),
            self.size.name().into(),
            self.lane.name().into(),
            n.to_string(),
            number(p5),
            number(p50),
            number(p95),
            number(max),
            number(self.click_ms.p50),
            number(self.click_ms.p95),
            self.clicks_missed.to_string(),
            number(self.pictures_per_second),
            self.unreadable.to_string(),
            number(self.kbit_per_second),
            number(self.server_cpu_percent),
            maybe(self.streamer_cpu_ms_per_frame),
            maybe(self.encode_cpu_ms_per_frame),
            number(self.load),
        ]
    }
}

const HEADINGS: [&str; 18] = [
    "scene", "size", "lane", "n", "p5", "p50", "p95", "max", "click50", "click95", "missed", "pict/s", "bad",
    "kbit/s", "cpu%", "ms/frame", "encode", "load",
];

/// All cells for people.
pub(super) fn table(cells: &[Cell]) -> String {
    let lines: Vec<Vec<String>> =
        [HEADINGS.map(str::to_owned).to_vec()].into_iter().chain(cells.iter().map(Cell::line)).collect();
    let widths: Vec<usize> =
        (0..HEADINGS.len()).map(|at| lines.iter().map(|line| line[at].len()).max().unwrap_or(0)).collect();
    let row = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).enumerate();
        let cells = cells.map(|(at, (text, width))| {
            // Names to the left, figures to the right.
            if at < 3 { format!("{text:width$}") } else { format!("{text:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(row).collect::<Vec<_>>().join("\n")
}

/// The figures that were promised, of the cells that are there.
pub(super) fn goals(cells: &[Cell]) -> Vec<Row> {
    let cell = |lane, scene, size| {
        cells.iter().find(|cell| cell.lane == lane && cell.scene == scene && cell.size == size)
    };
    let mut rows = Vec::new();
    for (scene, p50, p95) in [(Scene::Busy, Some(35.0), 60.0), (Scene::Static, None, 30.0)] {
        let Some(ours) = cell(Lane::WebRtc, scene, Size::Hd) else { continue };
        let row = Row::of(format!("{}: picture", ours.name()), "ms", &ours.ages, p50);
        rows.extend(row.map(|row| row.with_p95_goal(p95)));
        rows.extend(Row::of(format!("{}: click to picture", ours.name()), "ms", &ours.clicks, None));
    }
    for scene in [Scene::Busy, Scene::Static] {
        for size in [Size::Hd, Size::FullHd] {
            for (lane, goal) in [(Lane::X11vnc, 0.35), (Lane::TigerVnc, 0.5)] {
                let (Some(ours), Some(theirs)) = (cell(Lane::WebRtc, scene, size), cell(lane, scene, size))
                else {
                    continue;
                };
                let promised = scene == Scene::Busy && size == Size::Hd;
                let ratio = ours.picture_ms.p95 / theirs.picture_ms.p95;
                let name = format!("{} {}: picture p95, webrtc / {}", scene.name(), size.name(), lane.name());
                rows.extend(Row::of(name, "x", &[ratio], promised.then_some(goal)));
            }
        }
    }
    if let Some(ours) = cell(Lane::WebRtc, Scene::Busy, Size::Hd) {
        let encode: Vec<f64> = ours.encode_cpu_ms_per_frame.into_iter().collect();
        rows.extend(Row::of(format!("{}: encoder's CPU per frame", ours.name()), "ms", &encode, Some(5.0)));
    }
    rows
}
