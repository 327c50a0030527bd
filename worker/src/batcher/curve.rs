//! The time of a pass at each batch size: measured at start, kept up to date, and what the row budget and every estimate
//! come from.

use std::time::Duration;

/// One point: rows (cost units) in a pass, and the time it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Rows the model computed, a guided row counted twice.
    pub rows: usize,
    /// Time of the pass.
    pub time: Duration,
}

impl Point {
    /// Rows a second.
    pub fn rate(&self) -> f64 {
        self.rows as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// Pass time against rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PassCurve {
    /// Ascending in rows, each once.
    points: Vec<Point>,
}

impl PassCurve {
    /// From measurements; of equal rows the later wins.
    pub fn new(points: impl IntoIterator<Item = Point>) -> Self {
        let mut curve = PassCurve::default();
        for point in points {
            match curve.points.binary_search_by_key(&point.rows, |known| known.rows) {
                Ok(index) => curve.points[index] = point,
                Err(index) => curve.points.insert(index, point),
            }
        }
        curve
    }

    /// The points, ascending in rows.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// The smallest batch whose rows a second are within `tolerance` (0…1) of the best: beyond this knee a larger pass costs
    /// latency and buys nothing. `None` when nothing was measured.
    pub fn knee(&self, tolerance: f64) -> Option<usize> {
        let best = self.points.iter().map(Point::rate).fold(0.0, f64::max);
        self.points
            .iter()
            .find(|point| point.rate() >= best * (1.0 - tolerance))
            .map(|point| point.rows)
    }

    /// The largest batch measured that has at most `rows` and took at most `time`.
    pub fn largest(&self, rows: usize, time: Duration) -> Option<usize> {
        self.points
            .iter()
            .rfind(|point| point.rows <= rows && point.time <= time)
            .map(|point| point.rows)
    }

    /// Estimated time of a pass over `rows`: linear between points, in proportion beyond the last. Zero when nothing is
    /// known.
    pub fn time(&self, rows: usize) -> Duration {
        let after = self.points.partition_point(|point| point.rows < rows);
        match (
            after.checked_sub(1).and_then(|index| self.points.get(index)),
            self.points.get(after),
        ) {
            (_, Some(point)) if point.rows == rows => point.time,
            (Some(below), Some(above)) => {
                let share = (rows - below.rows) as f64 / (above.rows - below.rows) as f64;
                let seconds =
                    below.time.as_secs_f64() + share * (above.time.as_secs_f64() - below.time.as_secs_f64());
                Duration::from_secs_f64(seconds.max(0.0))
            }
            (None, Some(first)) => first.time,
            (Some(last), None) => last.time.mul_f64(rows as f64 / last.rows.max(1) as f64),
            (None, None) => Duration::ZERO,
        }
    }

    /// Takes a measured pass into account: moves the point of that size by an eighth of the difference, or adds it.
    pub fn observe(&mut self, measured: Point) {
        if measured.rows == 0 {
            return;
        }
        match self
            .points
            .binary_search_by_key(&measured.rows, |point| point.rows)
        {
            Ok(index) => {
                let time = &mut self.points[index].time;
                *time = (*time * 7 + measured.time) / 8;
            }
            Err(index) => self.points.insert(index, measured),
        }
    }
}

/// The batch sizes that warm-up measures: 1, 2, 3, 4, 6, 8, 12, 16 … up to `largest`, which is always among them.
pub fn warm_up_sizes(largest: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = (0..usize::BITS - 1)
        .flat_map(|power| [1usize << power, (1usize << power) / 2 * 3])
        .take_while(|size| *size < largest)
        .chain([largest.max(1)])
        .filter(|size| *size > 0)
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(usize, u64)]) -> PassCurve {
        PassCurve::new(points.iter().map(|(rows, millis)| Point {
            rows: *rows,
            time: Duration::from_millis(*millis),
        }))
    }

    #[test]
    fn the_knee_is_the_smallest_batch_near_the_best_rate() {
        // A device with a fixed cost of 9 ms and 1 ms a row up to 8 rows, then 10 ms a row.
        let curve = curve(&[(1, 10), (2, 11), (4, 13), (8, 17), (16, 97)]);
        assert_eq!(curve.knee(0.05), Some(8));
        assert_eq!(curve.knee(0.5), Some(4));
        assert_eq!(PassCurve::default().knee(0.05), None);
    }

    #[test]
    fn the_largest_batch_is_bounded_by_rows_and_by_time() {
        let curve = curve(&[(1, 10), (2, 20), (4, 40), (6, 60)]);
        let largest = |rows, millis| curve.largest(rows, Duration::from_millis(millis));
        assert_eq!(largest(4, 1000), Some(4));
        assert_eq!(largest(5, 1000), Some(4));
        assert_eq!(largest(100, 50), Some(4));
        assert_eq!(largest(100, 5), None);
        assert_eq!(largest(0, 1000), None);
    }

    #[test]
    fn times_between_points_are_interpolated_and_beyond_them_in_proportion() {
        let curve = curve(&[(2, 20), (4, 30)]);
        let times = [1, 2, 3, 4, 8].map(|rows| curve.time(rows).as_millis());
        assert_eq!(times, [20, 20, 25, 30, 60]);
    }

    #[test]
    fn measured_passes_move_the_estimate_without_jumping() {
        let mut curve = curve(&[(4, 80)]);
        curve.observe(Point {
            rows: 4,
            time: Duration::from_millis(160),
        });
        assert_eq!(curve.time(4).as_millis(), 90);
        curve.observe(Point {
            rows: 2,
            time: Duration::from_millis(50),
        });
        assert_eq!(curve.time(2).as_millis(), 50);
    }

    #[test]
    fn warm_up_measures_powers_of_two_what_lies_between_and_the_largest() {
        assert_eq!(warm_up_sizes(16), [1, 2, 3, 4, 6, 8, 12, 16]);
        assert_eq!(warm_up_sizes(5), [1, 2, 3, 4, 5]);
        assert_eq!(warm_up_sizes(1), [1]);
    }
}
