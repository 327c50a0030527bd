//! Medians and spreads.

use serde::Serialize;

/// Several measurements of one figure. Never empty.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Series {
    /// In the order in which they were measured.
    values: Vec<f64>,
}

impl Series {
    /// `None` when nothing was measured.
    pub(crate) fn new(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        (!values.is_empty()).then_some(Self { values })
    }

    /// Halfway: of an even number, the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    pub(crate) fn mean(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    /// The value below which `percent` of all lie, interpolated between the two nearest.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let place = percent.clamp(0.0, 100.0) / 100.0 * (sorted.len() - 1) as f64;
        let (below, share) = (place.floor() as usize, place.fract());
        let above = (below + 1).min(sorted.len() - 1);
        sorted[below] + share * (sorted[above] - sorted[below])
    }

    /// Least and greatest.
    pub(crate) fn range(&self) -> (f64, f64) {
        (self.percentile(0.0), self.percentile(100.0))
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Each value through `function`.
    pub(crate) fn map(&self, function: impl Fn(f64) -> f64) -> Self {
        Self {
            values: self.values.iter().copied().map(function).collect(),
        }
    }

    /// This over `other`, round by round: what drifts between rounds cancels. Both were measured in the same rounds; of a
    /// longer one the rest is left out.
    pub(crate) fn over(&self, other: &Series) -> Self {
        self.paired(other, |own, other| own / other)
    }

    /// This less `other`, round by round.
    pub(crate) fn less(&self, other: &Series) -> Self {
        self.paired(other, |own, other| own - other)
    }

    fn paired(&self, other: &Series, function: impl Fn(f64, f64) -> f64) -> Self {
        let pairs = self.values.iter().zip(&other.values);
        Self {
            values: pairs.map(|(own, other)| function(*own, *other)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn series(values: &[f64]) -> Series {
        Series::new(values.iter().copied()).unwrap()
    }

    #[test]
    fn percentiles_are_interpolated() {
        let four = series(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((four.median(), four.range()), (2.5, (1.0, 4.0)));
        assert_eq!(series(&[7.0]).percentile(99.0), 7.0);
        let hundred = Series::new((0..101).map(f64::from)).unwrap();
        assert_eq!(hundred.percentile(99.0), 99.0);
        assert_eq!(Series::new([]), None);
    }

    #[test]
    fn a_ratio_is_taken_within_a_round() {
        // The machine became twice as slow in the second round, for both.
        let (own, other) = (series(&[3.0, 6.0]), series(&[2.0, 4.0]));
        assert_eq!(own.over(&other).range(), (1.5, 1.5));
        assert_eq!(own.less(&other), series(&[1.0, 2.0]));
    }

    proptest! {
        #[test]
        fn percentiles_lie_in_the_range_and_rise(
            values in prop::collection::vec(-1e6f64..1e6, 1..40),
            percents in (0.0f64..100.0, 0.0f64..100.0),
        ) {
            let series = series(&values);
            let (least, greatest) = series.range();
            let (low, high) = (percents.0.min(percents.1), percents.0.max(percents.1));
            prop_assert!(least <= series.percentile(low));
            prop_assert!(series.percentile(low) <= series.percentile(high));
            prop_assert!(series.percentile(high) <= greatest);
        }
    }
}
