//! What comes before the kills that are drawn: one life of every kind of VM, which shows the failpoints and what leads
//! to them, and the kills while a template is made.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    caller::{Caller, Failure},
    suite::{LOOK_AGAIN, Suite, remove},
    track::{Goal, Operation, Track},
};

/// How long the first VM that is held ready may take.
const WARM_LIMIT: Duration = Duration::from_secs(120);

impl Suite {
    /// One life of every track without a kill, which shows the failpoints there are.
    pub(super) fn rehearse(&mut self) -> Result<()> {
        let (mut manager, caller) = self.starter.start(None)?;
        let caller = caller.context("a manager without a trap gets ready")?;
        let dead = |failure: Failure| anyhow::anyhow!("without any kill: {failure}");
        let before = self.starter.reached().len();
        if !self.options.cold {
            caller.prepare().map_err(dead)?;
        }
        let prepared = self.starter.reached().split_off(before);
        self.have_warm(&caller).map_err(dead)?;
        let (count, seed) = (self.options.driver.tracks(), self.options.seed);
        let driver = self.options.driver;
        self.tracks = (0..count).map(|index| Track::new(index, seed, driver)).collect();
        use Operation::{Create, Destroy, Get, Hibernate, Ping, Put, Resume};
        let life = [Create, Ping, Put, Get, Hibernate, Resume, Ping, Get, Destroy];
        for (index, track) in self.tracks.iter_mut().take(2).enumerate() {
            let for_all = |it: &Operation| matches!(it, Create | Ping | Destroy);
            for operation in life.into_iter().filter(|it| index == 0 || for_all(it)) {
                let before = self.starter.reached().len();
                track.perform(operation, &caller, &self.machine, &self.report).map_err(dead)?;
                let goal = Goal { operation, cli: track.user.is_some() };
                for name in self.starter.reached().split_off(before) {
                    let goals = self.goals.entry(name).or_default();
                    // What is reached by several kinds of requests, or by itself, is reached by the first, too.
                    if goals.first().is_none_or(|first| first.operation == operation) {
                        goals.insert(goal);
                    }
                }
            }
        }
        if self.report.fault_count() > 0 {
            bail!("there are faults without any kill:\n  {}", self.report.faults().join("\n  "));
        }
        self.once = prepared.into_iter().filter(|name| !self.goals.contains_key(name)).collect();
        manager.kill()?;
        self.starter.ended(false)?;
        // It would come again as a second controller when those of the kills die.
        drop(caller);
        self.kill_preparations()
    }

    /// What is made once is made anew for each kill that is due meanwhile, and then for all that follows.
    fn kill_preparations(&mut self) -> Result<()> {
        let names = std::mem::take(&mut self.once);
        for name in &names {
            remove(&self.machine.data.join("templates"))?;
            let (mut manager, caller) = self.starter.start(Some(name))?;
            match caller.map(|caller| caller.prepare()) {
                None | Some(Err(Failure::Died)) => {}
                Some(Err(failure)) => self.report.failed(format!("preparation: {failure}")),
                Some(Ok(())) => self.report.failed(format!("a template was made anew without {name}")),
            }
            manager.kill()?;
            if manager.is_trapped() {
                self.report.killed(name);
            }
            self.starter.ended(true)?;
        }
        if !names.is_empty() {
            let (mut manager, caller) = self.starter.start(None)?;
            let prepared = caller.context("a manager without a trap gets ready")?.prepare();
            prepared.map_err(|failure| anyhow::anyhow!("preparation: {failure}"))?;
            manager.kill()?;
            self.starter.ended(false)?;
        }
        self.once = names;
        Ok(())
    }

    /// Waits for the browser VMs that are held ready.
    fn have_warm(&self, caller: &Caller) -> Result<(), Failure> {
        let high = self.options.driver.warm();
        caller.warm(high)?;
        let deadline = Instant::now() + WARM_LIMIT;
        while caller.status().warm < high {
            if Instant::now() > deadline {
                return Err(Failure::Refused("no VM is held ready".to_owned()));
            }
            caller.list()?;
            thread::sleep(LOOK_AGAIN * 20);
        }
        Ok(())
    }
}
