//! How the rows of a pass are divided into parts of nearly equal work. Pure.

use crate::runtime::Lanes;

/// One row in a part: its conditional row, its unconditional one, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Index into the rows of the pass.
    pub(super) row: usize,
    /// Whether the part computes the conditional row.
    pub(super) conditional: bool,
    /// Whether it computes the unconditional one.
    pub(super) unconditional: bool,
    /// Whether that is all that the row needs.
    pub(super) whole: bool,
}

impl Share {
    /// The part computes both of its rows.
    pub(super) fn has_both(self) -> bool {
        self.conditional && self.unconditional
    }
}

/// Divides the rows of a pass, of which the `guided` ones count twice, into [`Lanes::parts`]. A guided row lies in two parts only
/// where that makes them equal.
pub(super) fn divide(guided: &[bool], lanes: Lanes) -> Vec<Vec<Share>> {
    let total: usize = guided.iter().map(|guided| 1 + usize::from(*guided)).sum();
    let sizes = lanes.parts(total);

    let mut divided: Vec<Vec<Share>> = vec![Vec::new(); sizes.len()];
    let mut part = 0;
    let mut taken = 0;
    for (row, guided) in guided.iter().enumerate() {
        for unconditional in [false, true] {
            if unconditional && !guided {
                continue;
            }
            if taken == sizes[part] {
                part += 1;
                taken = 0;
            }
            taken += 1;
            match divided[part].last_mut() {
                Some(share) if share.row == row => {
                    share.unconditional = true;
                    share.whole = true;
                }
                _ => divided[part].push(Share {
                    row,
                    conditional: !unconditional,
                    unconditional,
                    whole: !guided,
                }),
            }
        }
    }
    divided
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn divide(guided: &[bool], count: usize, rows: usize) -> Vec<Vec<Share>> {
        let lanes = Lanes {
            count,
            rows,
            threads: 1,
        };
        super::divide(guided, lanes)
    }

    fn size(part: &[Share]) -> usize {
        part.iter()
            .map(|share| usize::from(share.conditional) + usize::from(share.unconditional))
            .sum()
    }

    #[test]
    fn one_lane_computes_a_pass_as_one_part() {
        let divided = divide(&[true, false, true], 1, usize::MAX);
        assert_eq!(divided.iter().map(|part| size(part)).collect::<Vec<_>>(), [5]);
        assert_eq!(divide(&[], 1, usize::MAX), Vec::<Vec<Share>>::new());
    }

    #[test]
    fn the_two_halves_of_one_guided_row_take_a_lane_each() {
        let divided = divide(&[true], 2, 4);
        let halves: Vec<_> = divided
            .iter()
            .flatten()
            .map(|share| (share.row, share.conditional, share.unconditional, share.whole))
            .collect();
        assert_eq!(halves, [(0, true, false, false), (0, false, true, false)]);
    }

    #[test]
    fn guided_rows_stay_whole_where_the_parts_are_equal_anyway() {
        let divided = divide(&[true; 8], 2, 4);
        assert_eq!(divided.iter().map(|part| size(part)).collect::<Vec<_>>(), [4; 4]);
        assert!(divided.iter().flatten().all(|share| share.whole));
    }

    proptest! {
        #[test]
        fn every_row_is_computed_once_in_parts_of_equal_size(
            guided in prop::collection::vec(any::<bool>(), 0..40), lanes in 0usize..6, most in 0usize..9,
        ) {
            let divided = divide(&guided, lanes, most);
            let mut conditional = vec![0; guided.len()];
            let mut unconditional = vec![0; guided.len()];
            for share in divided.iter().flatten() {
                conditional[share.row] += usize::from(share.conditional);
                unconditional[share.row] += usize::from(share.unconditional);
                prop_assert_eq!(share.whole, share.conditional && share.unconditional == guided[share.row]);
            }
            prop_assert!(conditional.iter().all(|count| *count == 1));
            prop_assert!(unconditional.iter().zip(&guided).all(|(count, guided)| *count == usize::from(*guided)));

            let sizes: Vec<usize> = divided.iter().map(|part| size(part)).collect();
            let (least, greatest) = (sizes.iter().min(), sizes.iter().max());
            if let (Some(least), Some(greatest)) = (least, greatest) {
                prop_assert!(*least >= 1 && greatest - least <= 1 && *greatest <= most.max(1));
            }
            // Every lane has as many parts as the others, or there are too few rows for that.
            let rows: usize = sizes.iter().sum();
            prop_assert!(divided.len().is_multiple_of(lanes.max(1)) || divided.len() == rows);
            // Rows stay in order, and one is divided only between neighbours.
            let order: Vec<usize> = divided.iter().flatten().map(|share| share.row).collect();
            prop_assert!(order.is_sorted());
        }
    }
}
