//! The product over a bad network: does the picture freeze, does it come back, does it come at all.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    Lane, Options, SETTLE, Scene, Signs, Size, Way,
    interrupt::pause,
    open,
    product::{Product, SignIn},
    receiver::Receiver,
    visit,
};
use crate::{
    bench::Row,
    relay::{Conditions, Relay},
    run::step,
};

const GOOD: Conditions = Conditions { delay_ms: 30.0, loss_percent: 0.0, kbit_per_second: None };
/// 60 ms of round trip, 2 % lost each way.
const LOSSY: Conditions = Conditions { loss_percent: 2.0, ..GOOD };
/// Less than the scrolling page would take.
const NARROW: Conditions = Conditions { kbit_per_second: Some(2000.0), ..GOOD };
const BLOCKED: Conditions = Conditions { delay_ms: 0.0, loss_percent: 100.0, kbit_per_second: None };
const SEED: u64 = 1;
/// A picture that stands still for this long while it should move is a freeze.
const FREEZE_MS: f64 = 500.0;
const FIRST_PICTURE_MS: f64 = 3000.0;
/// What the page's browser counts.
const COUNTED: [&str; 5] =
    ["nackCount", "pliCount", "keyFramesDecoded", "retransmittedPacketsReceived", "framesReceived"];

/// Figures of all trials.
pub(super) fn measure(receiver: &mut Receiver, product: &Product, options: &Options) -> Result<Vec<Row>> {
    let sign_in = product.sign_in("bench-network")?;
    // The answer to an offer names the endpoint.
    let opened = open(receiver, product, &sign_in, Lane::WebRtc, Size::Hd, &Way::default())?;
    let endpoint = opened["udp"].as_str().context("the answer has a UDP candidate")?;
    let endpoint: SocketAddr = endpoint.parse().context("the endpoint's address")?;
    let mut trials = Trials { receiver, product, sign_in: &sign_in, endpoint, rows: Vec::new() };
    let time = options.network_time;
    for seed in 1..=options.lossy.unwrap_or(1) {
        let title =
            if seed == SEED { "60 ms, 2 % loss".to_owned() } else { format!("60 ms, 2 % loss ({seed})") };
        step(&format!("webrtc, {title}"), || trials.busy(&title, LOSSY, seed, time, Some(FREEZE_MS)))?;
    }
    if options.lossy.is_none() {
        step("webrtc with 60 ms round trip and 2 Mbit/s", || {
            trials.busy("60 ms, 2 Mbit/s", NARROW, SEED, time / 3, None)
        })?;
        step("with UDP blocked", || trials.blocked())?;
    }
    let rows = trials.rows;
    product.cancel(&sign_in)?;
    Ok(rows)
}

struct Trials<'a> {
    receiver: &'a mut Receiver,
    product: &'a Product,
    sign_in: &'a SignIn,
    endpoint: SocketAddr,
    rows: Vec<Row>,
}

impl Trials<'_> {
    fn relay(&self, conditions: Conditions, seed: u64) -> Result<Relay> {
        Relay::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), self.endpoint, conditions, seed)
    }

    /// The scrolling page over a network that becomes bad once the picture is there.
    fn busy(
        &mut self,
        title: &str,
        conditions: Conditions,
        seed: u64,
        time: Duration,
        freeze_goal: Option<f64>,
    ) -> Result<()> {
        let relay = self.relay(GOOD, seed)?;
        let way = Way { relay: Some(relay.address), any_lane: false };
        open(self.receiver, self.product, self.sign_in, Lane::WebRtc, Size::Hd, &way)?;
        visit(self.receiver, &self.sign_in.display, Scene::Busy)?;
        let _shown = Signs::show(&self.sign_in.display)?;
        relay.set(conditions);
        pause(SETTLE)?;
        let before = relay.passed();
        let seen = self.receiver.look(time)?;
        let after = relay.passed();
        self.receiver.ask("close", json!({}))?;

        let name = |what: &str| format!("busy 720p webrtc, {title}: {what}");
        let lost = (after.lost - before.lost) as f64;
        let passed = (after.packets - before.packets) as f64;
        let overflowed = (after.overflowed - before.overflowed) as f64;
        let share = |part: f64| [100.0 * part / (lost + overflowed + passed)];
        let longest = seen.gaps.iter().copied().fold(0.0, f64::max);
        let freezes = seen.gaps.iter().filter(|gap| **gap > FREEZE_MS).count();
        let none = freeze_goal.map(|_| 0.0);
        let rows = [
            Row::of(name("longest freeze"), "ms", &[longest], freeze_goal),
            Row::of(name("freezes above 500 ms"), "", &[freezes as f64], none),
            Row::of(name("from picture to picture"), "ms", &seen.gaps, None),
            Row::of(name("picture"), "ms", &seen.ages, None),
            Row::of(name("click to picture"), "ms", &seen.clicks, None),
            Row::of(name("clicks never seen"), "", &[seen.missed as f64], None),
            Row::of(name("pictures unreadable"), "", &[seen.bad as f64], None),
            Row::of(name("packets lost at random"), "%", &share(lost), None),
            Row::of(name("packets too many"), "%", &share(overflowed), None),
        ];
        let counted = COUNTED.iter().filter_map(|field| {
            let count = seen.grown[field].as_f64()?;
            Row::of(name(field), "", &[count], None)
        });
        self.rows.extend(rows.into_iter().flatten().chain(counted));
        Ok(())
    }

    /// The viewer is left to itself, with a UDP port behind which nobody answers.
    fn blocked(&mut self) -> Result<()> {
        let relay = self.relay(BLOCKED, SEED)?;
        let way = Way { relay: Some(relay.address), any_lane: true };
        let opened = open(self.receiver, self.product, self.sign_in, Lane::WebRtc, Size::Hd, &way)?;
        let first = opened["firstPictureMs"].as_f64().context("the receiver tells when the picture came")?;
        self.receiver.ask("close", json!({}))?;
        let lane = opened["kind"].as_str().unwrap_or("?");
        let name = format!("UDP blocked: opening to first picture, by {lane}");
        self.rows.extend(Row::of(name, "ms", &[first], Some(FIRST_PICTURE_MS)));
        Ok(())
    }
}
