//! Who may have a VM: a counted number of places and a queue for them.
//!
//! CLI VMs go in front of waiting sign-ins: a sign-in that has come so far must not wait for others to start.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// Places for VMs; clones share them.
#[derive(Debug, Clone)]
pub struct Slots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    total: usize,
    queue_max: usize,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    next_number: u64,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    urgent: bool,
}

/// No place is free and the queue takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {total} slots are in use")]
pub struct SlotsExhausted {
    /// Places there are.
    pub total: usize,
    /// The place in the queue that the caller would have had, 1 = next.
    pub queue_position: u32,
}

/// A place in the queue; dropping it gives it up.
#[derive(Debug)]
pub struct Ticket {
    shared: Arc<Shared>,
    number: u64,
}

/// A place for a VM; dropping it frees the place.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
}

impl Slots {
    /// `total` places; at most `queue_max` sign-ins wait for one.
    pub fn new(total: usize, queue_max: usize) -> Self {
        let shared = Shared { state: Mutex::default(), total, queue_max, changed: watch::Sender::new(()) };
        Self { shared: Arc::new(shared) }
    }

    /// Joins the queue for a browser VM. Refused when the queue has no room; a ticket that needs not wait is no
    /// burden on the queue.
    pub fn enter(&self) -> Result<Ticket, SlotsExhausted> {
        let mut state = self.shared.lock();
        let ahead = state.waiting.len();
        let must_wait = (state.used + ahead + 1).saturating_sub(self.shared.total);
        if must_wait > self.shared.queue_max {
            let queue_position = u32::try_from(must_wait).unwrap_or(u32::MAX);
            return Err(SlotsExhausted { total: self.shared.total, queue_position });
        }
        Ok(self.shared.join(&mut state, false))
    }

    /// Joins the queue for a CLI VM, in front of all browser VMs.
    pub fn enter_urgently(&self) -> Ticket {
        let mut state = self.shared.lock();
        self.shared.join(&mut state, true)
    }

    /// A place for a VM that is running already, even when that is one too many.
    pub fn occupy(&self) -> Permit {
        self.shared.lock().used += 1;
        Permit { shared: Arc::clone(&self.shared) }
    }

    /// Places in use and places there are.
    pub fn count(&self) -> (usize, usize) {
        (self.shared.lock().used, self.shared.total)
    }
}

impl Ticket {
    /// Waits for a place. `moved` is told the place in the queue, 1 = next, at first and whenever it changes.
    pub async fn wait(self, mut moved: impl FnMut(u32)) -> Permit {
        let mut changes = self.shared.changed.subscribe();
        let mut told = 0;
        loop {
            changes.mark_unchanged();
            match self.try_take() {
                Ok(permit) => return permit,
                Err(position) if position != told => {
                    told = position;
                    moved(position);
                }
                Err(_) => {}
            }
            changes.changed().await.expect("the sender lives as long as the ticket");
        }
    }

    fn try_take(&self) -> Result<Permit, u32> {
        let mut state = self.shared.lock();
        let place = state.waiting.iter().position(|waiter| waiter.number == self.number);
        let place = place.expect("a ticket is in the queue until it is dropped or used");
        let free = self.shared.total.saturating_sub(state.used);
        if place >= free {
            return Err(u32::try_from(place - free + 1).unwrap_or(u32::MAX));
        }
        state.used += 1;
        state.waiting.remove(place);
        Ok(Permit { shared: Arc::clone(&self.shared) })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.waiting.retain(|waiter| waiter.number != self.number);
        drop(state);
        self.shared.changed.send_replace(());
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.used = state.used.saturating_sub(1);
        drop(state);
        self.shared.changed.send_replace(());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(self: &Arc<Self>, state: &mut State, urgent: bool) -> Ticket {
        let number = state.next_number;
        state.next_number += 1;
        let place = if urgent {
            state.waiting.iter().position(|waiter| !waiter.urgent).unwrap_or(state.waiting.len())
        } else {
            state.waiting.len()
        };
        state.waiting.insert(place, Waiter { number, urgent });
        Ticket { shared: Arc::clone(self), number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_queue_the_one_too_many_is_told_its_place() {
        let slots = Slots::new(2, 0);
        let first = slots.enter().unwrap().wait(|_| ()).await;
        let _second = slots.enter().unwrap().wait(|_| ()).await;
        assert_eq!(slots.enter().unwrap_err(), SlotsExhausted { total: 2, queue_position: 1 });
        drop(first);
        slots.enter().unwrap().wait(|_| ()).await;
    }

    #[tokio::test]
    async fn the_queue_is_served_in_order_with_cli_vms_in_front() {
        let slots = Slots::new(1, 2);
        let held = slots.enter().unwrap().wait(|_| ()).await;
        let (order, mut served) = tokio::sync::mpsc::unbounded_channel();
        let spawn = |name: &'static str, ticket: Ticket| {
            let order = order.clone();
            tokio::spawn(async move {
                let _permit = ticket.wait(|_| ()).await;
                order.send(name).unwrap();
            })
        };
        let one = spawn("first", slots.enter().unwrap());
        let two = spawn("second", slots.enter().unwrap());
        assert_eq!(slots.enter().unwrap_err().queue_position, 3);
        let cli = spawn("cli", slots.enter_urgently());
        drop(held);
        for task in [cli, one, two] {
            task.await.unwrap();
        }
        drop(order);
        let mut names = Vec::new();
        while let Some(name) = served.recv().await {
            names.push(name);
        }
        assert_eq!(names, ["cli", "first", "second"]);
        assert_eq!(slots.count(), (0, 1));
    }

    #[tokio::test]
    async fn a_dropped_ticket_lets_the_next_one_through() {
        let slots = Slots::new(1, 2);
        let held = slots.enter().unwrap().wait(|_| ()).await;
        let quitter = slots.enter().unwrap();
        let next = slots.enter().unwrap();
        drop(quitter);
        drop(held);
        next.wait(|_| ()).await;
    }
}
