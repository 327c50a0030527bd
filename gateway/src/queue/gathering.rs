//! What shares a call with what: items that wait while enough calls are under way. Pure: `lane.rs` makes the calls.

use std::collections::VecDeque;

/// How much one call takes, and how many there are at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Items of a call; at least 1.
    pub(super) items: usize,
    /// Bytes of a call; a larger item goes alone.
    pub(super) bytes: usize,
    /// Calls under way; at least 1.
    pub(super) calls: usize,
}

/// Items in the order of their coming, and the number of calls under way.
#[derive(Debug)]
pub(super) struct Gathering<T> {
    limits: Limits,
    waiting: VecDeque<(T, usize)>,
    in_flight: usize,
}

impl<T> Gathering<T> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            in_flight: 0,
        }
    }

    /// An item of so many bytes waits. True: a caller shall begin now, which asks [`Gathering::next`] until that has nothing.
    pub(super) fn push(&mut self, item: T, bytes: usize) -> bool {
        self.waiting.push_back((item, bytes));
        let begins = self.in_flight < self.limits.calls;
        self.in_flight += usize::from(begins);
        begins
    }

    /// The items of a caller's next call, of those that are still wanted. `None`: none wait, and the caller ends.
    pub(super) fn next(&mut self, is_wanted: impl Fn(&T) -> bool) -> Option<Vec<T>> {
        let (mut items, mut sum) = (Vec::new(), 0_usize);
        while let Some((item, bytes)) = self.waiting.pop_front() {
            if !is_wanted(&item) {
                continue;
            }
            if !items.is_empty() && sum.saturating_add(bytes) > self.limits.bytes {
                self.waiting.push_front((item, bytes));
                break;
            }
            sum = sum.saturating_add(bytes);
            items.push(item);
            if items.len() >= self.limits.items {
                break;
            }
        }
        if items.is_empty() {
            self.in_flight = self.in_flight.saturating_sub(1);
            return None;
        }
        Some(items)
    }

    /// A caller ends in the middle of its work. True: items wait, and another shall begin in its place.
    pub(super) fn leave(&mut self) -> bool {
        let replaced = !self.waiting.is_empty();
        if !replaced {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        items: 3,
        bytes: 10,
        calls: 2,
    };

    fn all(gathering: &mut Gathering<u32>) -> Option<Vec<u32>> {
        gathering.next(|_| true)
    }

    #[test]
    fn the_first_goes_at_once_and_those_behind_the_last_call_share_the_next() {
        let mut gathering = Gathering::new(LIMITS);
        assert!(gathering.push(1, 1));
        assert_eq!(all(&mut gathering), Some(vec![1]));
        assert!(gathering.push(2, 1));
        assert_eq!(all(&mut gathering), Some(vec![2]));
        // Both calls are under way.
        for item in 3..7 {
            assert!(!gathering.push(item, 1));
        }
        assert_eq!(all(&mut gathering), Some(vec![3, 4, 5]));
        assert_eq!(all(&mut gathering), Some(vec![6]));
        assert_eq!(all(&mut gathering), None);
        assert!(gathering.push(7, 1), "one of the two has ended");
        assert!(!gathering.push(8, 1));
    }

    #[test]
    fn a_caller_that_breaks_off_is_replaced_while_items_wait() {
        let mut gathering = Gathering::new(LIMITS);
        assert!(gathering.push(1, 1) && gathering.push(2, 1) && !gathering.push(3, 1));
        assert!(gathering.leave());
        assert!(!gathering.push(4, 1), "its place is taken");
        assert_eq!(all(&mut gathering), Some(vec![1, 2, 3]));
        assert_eq!(all(&mut gathering), Some(vec![4]));
        assert!(!gathering.leave());
        assert!(gathering.push(5, 1), "one of the two is gone");
        assert!(!gathering.push(6, 1));
    }

    #[test]
    fn bytes_limit_a_call_and_a_large_item_goes_alone() {
        let mut gathering = Gathering::new(LIMITS);
        for (item, bytes) in [(1, 6), (2, 4), (3, 1), (4, 50), (5, usize::MAX), (6, 1)] {
            gathering.push(item, bytes);
        }
        let mut calls = Vec::new();
        while let Some(items) = all(&mut gathering) {
            calls.push(items);
        }
        assert_eq!(calls, [vec![1, 2], vec![3], vec![4], vec![5], vec![6]]);
    }

    #[test]
    fn what_nobody_waits_for_is_left_out() {
        let mut gathering = Gathering::new(LIMITS);
        for item in 1..=6 {
            gathering.push(item, 1);
        }
        assert_eq!(gathering.next(|item| item % 2 == 0), Some(vec![2, 4, 6]));
        assert!(!gathering.push(7, 1));
        assert_eq!(gathering.next(|_| false), None);
        assert_eq!(all(&mut gathering), None);
        assert!(gathering.push(8, 1), "no call is under way");
    }
}
