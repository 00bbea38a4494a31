//! A key of the sweep as an axis: numbers with their unit where its values are some, words otherwise.

use super::parts::time;
use crate::cli::values;
use crate::report::chart::Axis;

/// What a text may be the number of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantity {
    Rate,
    Size,
    Time,
    Count,
}

/// An axis of words, and their places.
pub(super) fn words(key: &str, texts: &[String]) -> (Axis, Vec<f64>) {
    let places = (0..texts.len()).map(|index| index as f64).collect();
    (Axis::of_words(key.replace('_', " "), texts.to_vec()), places)
}

/// An axis for the values of a key, and their places.
pub(super) fn of(key: &str, texts: &[String]) -> (Axis, Vec<f64>) {
    let numbers: Option<Vec<(Quantity, f64)>> = texts.iter().map(|text| number(text)).collect();
    let Some(numbers) = numbers else {
        return words(key, texts);
    };
    let Some(&(quantity, _)) = numbers.first() else {
        return words(key, texts);
    };
    if numbers.iter().any(|(other, _)| *other != quantity) {
        return words(key, texts);
    }
    let numbers: Vec<f64> = numbers.into_iter().map(|(_, number)| number).collect();
    let largest = numbers.iter().copied().fold(0.0, f64::max);
    let binary = texts.iter().all(|text| text.trim_end_matches("/s").ends_with("iB"));
    let (step, units): (f64, &[&str]) = match (quantity, binary) {
        (Quantity::Rate | Quantity::Size, true) => (1024.0, &["B", "KiB", "MiB", "GiB", "TiB"]),
        (Quantity::Rate | Quantity::Size, false) => (1000.0, &["B", "kB", "MB", "GB", "TB"]),
        (Quantity::Time, _) => (1000.0, &["ns", "µs", "ms", "s"]),
        (Quantity::Count, _) => (1.0, &[""]),
    };
    // The unit in which most people would write most of them: that of the middle one.
    let mut sorted = numbers.clone();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or(largest);
    let (mut size, mut index) = (1.0, 0);
    while index + 1 < units.len() && middle >= size * step {
        (size, index) = (size * step, index + 1);
    }
    let unit = match quantity {
        Quantity::Rate => format!("{}/s", units[index]),
        _ => units[index].to_owned(),
    };
    let places: Vec<f64> = numbers.iter().map(|number| number / size).collect();
    let axis = Axis {
        log: is_by_factors(&places),
        ..Axis::of_numbers(key.replace('_', " "), unit)
    };
    (axis, places)
}

/// Bytes, bytes a second, nanoseconds, or a number of anything.
pub(super) fn number(text: &str) -> Option<(Quantity, f64)> {
    if let Ok(count) = text.parse::<f64>() {
        return count.is_finite().then_some((Quantity::Count, count));
    }
    if text.ends_with("/s") {
        return values::rate(text).ok().map(|rate| (Quantity::Rate, rate.0 as f64));
    }
    let size = || values::size(text).ok().map(|size| (Quantity::Size, size.0 as f64));
    size().or_else(|| time(text).ok().map(|time| (Quantity::Time, time.0 as f64)))
}

/// Whether numbers rise by factors rather than by differences: their distances are more even that way.
fn is_by_factors(numbers: &[f64]) -> bool {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let spread = |scaled: Vec<f64>| {
        let gaps: Vec<f64> = scaled.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let square: f64 = gaps.iter().map(|gap| (gap / mean - 1.0).powi(2)).sum();
        (square / gaps.len() as f64).sqrt()
    };
    let above_zero = sorted.first().is_some_and(|least| *least > 0.0);
    let logs = || sorted.iter().map(|number| number.ln()).collect();
    sorted.len() > 2 && above_zero && spread(logs()) < spread(sorted.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(texts: &[&str]) -> (String, bool, Vec<f64>) {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        let (axis, places) = of("a_key", &texts);
        (axis.label(), axis.log, places)
    }

    #[test]
    fn numbers_have_the_unit_they_are_written_in() {
        assert_eq!(
            axis(&["8GiB", "16GiB", "32GiB"]),
            ("a key (GiB)".into(), true, vec![8.0, 16.0, 32.0])
        );
        assert_eq!(
            axis(&["8GB", "12GB", "16GB"]),
            ("a key (GB)".into(), false, vec![8.0, 12.0, 16.0])
        );
        let rates = axis(&["50MB/s", "100MB/s", "500MB/s", "1250MB/s"]);
        assert_eq!(rates, ("a key (MB/s)".into(), true, vec![50.0, 100.0, 500.0, 1250.0]));
        assert_eq!(
            axis(&["1ms", "10ms", "0s"]),
            ("a key (ms)".into(), false, vec![1.0, 10.0, 0.0])
        );
        assert_eq!(
            axis(&["250ns", "500ns"]),
            ("a key (ns)".into(), false, vec![250.0, 500.0])
        );
        assert_eq!(axis(&["1", "2", "4"]), ("a key".into(), true, vec![1.0, 2.0, 4.0]));
    }

    #[test]
    fn what_is_no_number_is_a_word() {
        assert_eq!(
            axis(&["seq,rate=5", "uniform"]),
            ("a key".into(), false, vec![0.0, 1.0])
        );
        assert_eq!(axis(&["8GiB", "8s"]), ("a key".into(), false, vec![0.0, 1.0]));
        assert_eq!(axis(&[]), ("a key".into(), false, vec![]));
    }
}
