//! Small pictures made of characters.

use super::trace::HeatReport;

/// From nothing to the most.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// From nothing to the most, by factors.
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];

/// One character for each value, at most `width` of them: more values are averaged. The lowest bar is nothing, the highest the
/// largest value. Empty without values.
pub fn sparkline(values: &[f64], width: usize) -> String {
    let values = resampled(values, width);
    let most = values.iter().copied().fold(0.0, f64::max);
    let bar = |value: f64| {
        let place = if most > 0.0 {
            value / most * (BARS.len() - 1) as f64
        } else {
            0.0
        };
        BARS[(place.round() as usize).min(BARS.len() - 1)]
    };
    values.into_iter().map(bar).collect()
}

/// Means of neighbours, at most `width` of them.
fn resampled(values: &[f64], width: usize) -> Vec<f64> {
    if values.len() <= width || width == 0 {
        return values.to_vec();
    }
    let bound = |index: usize| index * values.len() / width;
    let means = (0..width).map(|index| {
        let part = &values[bound(index)..bound(index + 1)];
        part.iter().sum::<f64>() / part.len() as f64
    });
    means.collect()
}

/// A heat map in shades, the highest addresses above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadeMap {
    /// The lowest address of each line, and the line.
    pub lines: Vec<(u64, String)>,
    /// From so many events a second and page on, in thousandths, each shade after the first stands.
    pub levels_milli: Vec<u64>,
    /// Pages of a line.
    pub line_pages: u64,
    /// How long a character is.
    pub column_us: u64,
}

impl ShadeMap {
    /// Of at most so many characters and lines, at least one each.
    pub fn of(heat: &HeatReport, width: usize, height: usize) -> Self {
        let (across, up) = (
            heat.columns.len().div_ceil(width.max(1)).max(1),
            heat.row_addresses.len().div_ceil(height.max(1)).max(1),
        );
        let cells: Vec<Vec<u64>> = heat
            .columns
            .chunks(across)
            .map(|columns| {
                let rows = (0..heat.row_addresses.len()).step_by(up);
                let sum = |row: usize| columns.iter().flat_map(|column| column.iter().skip(row).take(up)).sum();
                rows.map(sum).collect()
            })
            .collect();
        let levels = levels(cells.iter().flatten().copied(), SHADES.len() - 1);
        let shade = |events: u64| SHADES[levels.iter().filter(|level| events >= **level && events > 0).count()];
        let mut lines: Vec<(u64, String)> = heat
            .row_addresses
            .iter()
            .step_by(up)
            .enumerate()
            .map(|(row, address)| (*address, cells.iter().map(|column| shade(column[row])).collect()))
            .collect();
        lines.reverse();
        let (column_us, line_pages) = (heat.column_us * across as u64, heat.row_pages * up as u64);
        let scale = u128::from(column_us.max(1)) * u128::from(line_pages.max(1));
        let milli = |events: u64| (u128::from(events) * 1_000_000_000 / scale) as u64;
        Self {
            lines,
            levels_milli: levels.iter().map(|level| milli(*level)).collect(),
            line_pages,
            column_us,
        }
    }

    /// The shades with what they stand for: `░ from 0.10, ▒ from 1.0, …`.
    pub fn legend(&self) -> String {
        let shades = SHADES[1..].iter().zip(&self.levels_milli);
        let texts = shades.map(|(shade, milli)| format!("{shade} from {}", super::chart::number(*milli as f64 / 1e3)));
        texts.collect::<Vec<_>>().join(", ")
    }
}

/// Least values of at most so many classes, by factors, from the least count that is not zero to the largest: ascending and different.
pub(super) fn levels(counts: impl Iterator<Item = u64>, classes: usize) -> Vec<u64> {
    let ends = counts.filter(|count| *count > 0).fold(None, |ends, count| {
        let (least, most) = ends.unwrap_or((count, count));
        Some((least.min(count), most.max(count)))
    });
    let (least, most) = ends.unwrap_or((1, 1));
    let factor = most as f64 / least as f64;
    let level = |class: usize| (least as f64 * factor.powf(class as f64 / classes as f64)).round() as u64;
    let mut levels: Vec<u64> = (0..classes).map(level).collect();
    levels.dedup();
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_their_values() {
        assert_eq!(sparkline(&[0.0, 1.0, 2.0, 7.0], 9), "▁▂▃█");
        assert_eq!(sparkline(&[0.0, 0.0], 9), "▁▁");
        assert_eq!(sparkline(&[1.0, 3.0, 0.0, 0.0], 2), "█▁");
        assert_eq!(sparkline(&[], 9), "");
        assert_eq!(sparkline(&vec![5.0; 1000], 80).chars().count(), 80);
    }

    #[test]
    fn levels_are_factors_apart() {
        let of = |counts: &[u64]| levels(counts.iter().copied(), 4);
        assert_eq!(of(&[0, 10_000, 1]), [1, 10, 100, 1000]);
        assert_eq!(of(&[50, 800, 50]), [50, 100, 200, 400]);
        assert_eq!(of(&[7]), [7]);
        assert_eq!(of(&[0]), [1]);
        assert_eq!(of(&[1, 3]), [1, 2]);
    }

    #[test]
    fn shades_are_sums_of_cells() {
        let heat = HeatReport {
            column_us: 500_000,
            row_pages: 2,
            row_addresses: vec![0, 8192, 16_384],
            end_address: 20_480,
            columns: vec![vec![0, 1, 10_000], vec![0, 0, 0], vec![100, 0, 0]],
        };
        let map = ShadeMap::of(&heat, 9, 9);
        let lines: Vec<&str> = map.lines.iter().map(|line| line.1.as_str()).collect();
        assert_eq!(lines, ["█  ", "░  ", "  ▓"]);
        assert_eq!(map.lines[0].0, 16_384);
        // One event in half a second on two pages.
        assert_eq!(map.levels_milli, [1_000, 10_000, 100_000, 1_000_000]);
        assert_eq!(map.legend(), "░ from 1, ▒ from 10, ▓ from 100, █ from 1,000");
        let small = ShadeMap::of(&heat, 2, 2);
        assert_eq!(
            (small.line_pages, small.column_us, small.lines.len()),
            (4, 1_000_000, 2)
        );
        assert_eq!(small.lines[1].1, "░▓", "1 of four pages in one second, and 100");
    }
}
