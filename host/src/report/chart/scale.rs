//! From numbers to pixels, and which numbers are written at an axis.

use crate::report::count;

/// About so many numbers at an axis.
const TICKS: f64 = 5.0;

/// One axis of numbers on the screen.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    log: bool,
    /// Where the lowest and the highest are.
    pixels: [i32; 2],
}

impl Scale {
    /// Over all of `values`, which are finite. With `from_zero` it begins at zero, or includes it.
    pub(super) fn over(values: &[f64], log: bool, from_zero: bool, pixels: [i32; 2]) -> Self {
        let usable = values.iter().copied().filter(|value| !log || *value > 0.0);
        let (low, high) = usable.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let (low, high) = match (low.is_finite() && high.is_finite(), log) {
            (true, true) => (step_below(low), step_above(high)),
            (true, false) => linear(low, high, from_zero),
            (false, true) => (1.0, 10.0),
            (false, false) => (0.0, 1.0),
        };
        let high = if high > low { high } else { low + low.abs().max(1.0) };
        Self { low, high, log, pixels }
    }

    /// Exactly over `values`, with a share of it free at both ends.
    pub(super) fn around(values: &[f64], log: bool, free: f64, pixels: [i32; 2]) -> Self {
        let mut scale = Self::over(values, log, false, pixels);
        let usable = || values.iter().copied().filter(|value| !log || *value > 0.0);
        let low = usable().fold(f64::INFINITY, f64::min);
        let high = usable().fold(f64::NEG_INFINITY, f64::max);
        if low < high && !log {
            (scale.low, scale.high) = (low - free * (high - low), high + free * (high - low));
        } else if low < high {
            let factor = (high / low).powf(free);
            (scale.low, scale.high) = (low / factor, high * factor);
        }
        scale
    }

    /// Where a number is. What is beyond an end is at the end.
    pub(super) fn at(&self, value: f64) -> i32 {
        let share = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        let [from, to] = self.pixels.map(f64::from);
        (from + share.clamp(0.0, 1.0) * (to - from)).round() as i32
    }

    /// Where bars begin.
    pub(super) fn base(&self) -> i32 {
        self.at(if self.log { self.low } else { 0.0 })
    }

    /// Round numbers with their texts.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        if self.log {
            self.log_ticks()
        } else {
            self.linear_ticks()
        }
    }

    fn linear_ticks(&self) -> Vec<(f64, String)> {
        let step = nice((self.high - self.low) / TICKS);
        let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        let first = (self.low / step - 1e-6).ceil() as i64;
        let last = (self.high / step + 1e-6).floor() as i64;
        let values = (first..=last).map(|index| index as f64 * step);
        values.map(|value| (value, separated(value, decimals))).collect()
    }

    fn log_ticks(&self) -> Vec<(f64, String)> {
        let decades = (self.high / self.low).log10();
        let factors: &[f64] = if decades > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let exponents = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let all = exponents.flat_map(|exponent| factors.iter().map(move |factor| factor * 10f64.powi(exponent)));
        let inside = |value: &f64| *value >= self.low * 0.999 && *value <= self.high * 1.001;
        all.filter(inside).map(|value| (value, exact(rounded(value)))).collect()
    }
}

/// Without what powers of ten leave behind the last digit.
fn rounded(value: f64) -> f64 {
    format!("{value:.0e}").parse().unwrap_or(value)
}

/// Ends at round numbers.
fn linear(low: f64, high: f64, from_zero: bool) -> (f64, f64) {
    // A line that falls by a third looks as if it fell to nothing where the axis begins just below it.
    let low = if from_zero || (low >= 0.0 && low < 0.7 * high) {
        low.min(0.0)
    } else {
        low
    };
    let high = if from_zero { high.max(0.0) } else { high };
    let step = nice((high - low).max(high.abs() * 1e-3).max(f64::MIN_POSITIVE) / TICKS);
    ((low / step + 1e-6).floor() * step, (high / step - 1e-6).ceil() * step)
}

/// The next of 1, 2, 5 times a power of ten that is not smaller.
fn nice(step: f64) -> f64 {
    if !(step.is_finite() && step > 0.0) {
        return 1.0;
    }
    step_above(step)
}

fn step_above(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let factor = factors.into_iter().find(|factor| factor * power >= value * 0.999_999);
    factor.unwrap_or(10.0) * power
}

fn step_below(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let factors = [5.0, 2.0, 1.0];
    let factor = factors.into_iter().find(|factor| factor * power <= value * 1.000_001);
    factor.unwrap_or(1.0) * power
}

/// A number for people: three significant digits, or all before the point, with separators. A whole number has no decimals.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "—".into();
    }
    let magnitude = if value == 0.0 { 0.0 } else { value.abs().log10().floor() };
    let decimals = if value.fract() == 0.0 {
        0.0
    } else {
        (2.0 - magnitude).clamp(0.0, 9.0)
    };
    separated(value, decimals as usize)
}

/// A number that somebody chose: all of its digits and no others.
pub fn exact(value: f64) -> String {
    let text = value.abs().to_string();
    let decimals = text.split_once('.').map_or(0, |(_, rest)| rest.len());
    if value.is_finite() {
        separated(value, decimals)
    } else {
        "—".into()
    }
}

/// With so many decimals, and separators before the point.
fn separated(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, rest) = text
        .split_once('.')
        .map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let whole = whole.parse().map_or_else(|_| whole.to_owned(), count);
    let rest = rest.map_or_else(String::new, |rest| format!(".{rest}"));
    let is_zero = !text.contains(|digit: char| digit.is_ascii_digit() && digit != '0');
    let sign = if value < 0.0 && !is_zero { "−" } else { "" };
    format!("{sign}{whole}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(scale: &Scale) -> Vec<String> {
        scale.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn an_axis_ends_at_round_numbers() {
        let bars = Scale::over(&[614.0, 448.0], false, true, [300, 0]);
        assert_eq!(texts(&bars), ["0", "200", "400", "600", "800"]);
        assert_eq!(
            (bars.base(), bars.at(800.0), bars.at(400.0), bars.at(9e9)),
            (300, 0, 150, 0)
        );
        let near = Scale::over(&[0.971, 0.984], false, false, [300, 0]);
        assert_eq!(texts(&near), ["0.970", "0.975", "0.980", "0.985"]);
        assert_eq!(texts(&Scale::over(&[0.0, 0.0], false, true, [1, 0]))[0], "0.0");
        assert_eq!(
            texts(&Scale::over(&[-4.0, 9.0], false, false, [1, 0])),
            ["−5", "0", "5", "10"]
        );
    }

    #[test]
    fn factors_take_the_same_room() {
        let scale = Scale::over(&[3.0, 700.0, 0.0], true, false, [300, 0]);
        assert_eq!(
            texts(&scale),
            ["2", "5", "10", "20", "50", "100", "200", "500", "1,000"]
        );
        let step = |low: f64| scale.at(low) - scale.at(low * 10.0);
        assert!((step(5.0) - step(50.0)).abs() <= 1);
        assert_eq!((scale.at(0.0), scale.base()), (300, 300));
        assert_eq!(texts(&Scale::over(&[], true, false, [1, 0])), ["1", "2", "5", "10"]);
        let wide = Scale::over(&[1e-3, 1e4], true, false, [1, 0]);
        assert_eq!(texts(&wide)[..3], ["0.001", "0.01", "0.1"]);
    }

    #[test]
    fn room_is_left_at_both_ends() {
        let scale = Scale::around(&[10.0, 20.0], false, 0.1, [0, 120]);
        assert_eq!((scale.at(10.0), scale.at(20.0)), (10, 110));
        let one = Scale::around(&[8.0], false, 0.1, [0, 120]);
        assert!((0..=120).contains(&one.at(8.0)));
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (605.9, "606"),
            (30_720.4, "30,720"),
            (0.7684, "0.768"),
            (0.7, "0.700"),
            (21.96, "22.0"),
            (28.0, "28"),
            (0.0, "0"),
            (-12.34, "−12.3"),
            (-0.000_000_000_01, "0.000000000"),
            (f64::NAN, "—"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn what_was_chosen_has_its_own_digits() {
        for (value, text) in [
            (1.004, "1.004"),
            (1.0, "1"),
            (-0.25, "−0.25"),
            (30_720.5, "30,720.5"),
            (f64::INFINITY, "—"),
        ] {
            assert_eq!(exact(value), text);
        }
    }
}
