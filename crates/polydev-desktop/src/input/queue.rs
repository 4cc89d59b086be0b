//! What waits for the input thread: bounded, and only pointer moves are ever merged.

use std::{
    collections::VecDeque,
    io, mem,
    sync::{Mutex, PoisonError},
};

use polydev_core::desktop::InputEvent;

use crate::wake::Wake;

/// Most orders that wait. The thread needs a fraction of a millisecond for most; a text may take seconds.
const WAITING_MAX: usize = 4096;

/// Something for the input thread to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// An event of the person.
    Input { seq: u32, event: InputEvent },
    /// Everything that may be held is let go.
    Wipe,
}

#[derive(Debug, Default)]
struct Waiting {
    orders: VecDeque<Order>,
    closed: bool,
}

/// Orders on their way to the input thread.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Wake,
}

impl Queue {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { waiting: Mutex::default(), wake: Wake::new()? })
    }

    /// Appends an order and says how many were given up for it. When too many wait, none of them is done: half of what
    /// was typed is worse than nothing. Everything held is let go instead.
    pub(super) fn push(&self, order: Order) -> u64 {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = &mut waiting.orders;
        let mut dropped = 0;
        if is_move(&order)
            && let Some(last) = orders.back_mut()
            && is_move(last)
        {
            *last = order;
        } else if orders.len() < WAITING_MAX {
            orders.push_back(order);
        } else {
            let given_up =
                orders.drain(..).filter(|order| matches!(order, Order::Input { .. })).count() as u64;
            if let Order::Input { seq, .. } = order {
                orders.push_back(Order::Input { seq, event: InputEvent::ReleaseAll });
                dropped = 1;
            }
            orders.push_back(Order::Wipe);
            dropped += given_up;
        }
        drop(waiting);
        self.wake.wake();
        dropped
    }

    /// Everything that waits; `None` once closed and empty.
    pub(super) fn take(&self) -> Option<VecDeque<Order>> {
        self.wake.clear();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = mem::take(&mut waiting.orders);
        (!orders.is_empty() || !waiting.closed).then_some(orders)
    }

    /// What waits is still done, nothing more comes.
    pub(super) fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.wake.wake();
    }

    /// Readable when there is something to take.
    pub(super) fn wake(&self) -> &Wake {
        &self.wake
    }
}

fn is_move(order: &Order) -> bool {
    matches!(order, Order::Input { event: InputEvent::Move { .. }, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(seq: u32) -> Order {
        Order::Input { seq, event: InputEvent::Move { x: 0, y: 0 } }
    }

    fn pressed(seq: u32) -> Order {
        Order::Input { seq, event: InputEvent::Button { button: 1, down: true, x: 0, y: 0 } }
    }

    #[test]
    fn only_moves_in_a_row_are_merged() {
        let queue = Queue::new().unwrap();
        for order in [moved(1), moved(2), pressed(3), pressed(4), moved(5), moved(6)] {
            assert_eq!(queue.push(order), 0);
        }
        assert_eq!(queue.take().unwrap(), [moved(2), pressed(3), pressed(4), moved(6)]);
    }

    #[test]
    fn too_many_orders_are_given_up_together_and_counted() {
        let queue = Queue::new().unwrap();
        for seq in 0..WAITING_MAX as u32 {
            assert_eq!(queue.push(pressed(seq)), 0);
        }
        assert_eq!(queue.push(pressed(9999)), WAITING_MAX as u64 + 1);
        let release = Order::Input { seq: 9999, event: InputEvent::ReleaseAll };
        assert_eq!(queue.take().unwrap(), [release, Order::Wipe]);
    }

    #[test]
    fn what_waits_when_it_is_closed_is_still_done() {
        let queue = Queue::new().unwrap();
        queue.push(pressed(1));
        queue.close();
        assert_eq!(queue.take().unwrap(), [pressed(1)]);
        assert_eq!(queue.take(), None);
    }
}
