//! Figures that a plan asks for: which of its results, over what.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IntoDeserializer as _;

use super::axis;
use super::course::{RoundValue, SecondValue, mark, rounds, seconds};
use super::{Plan, PlanValue, Point, PointResult};
use crate::report::chart::{Axis, Chart, Kind, Series};
use crate::sim::SimResult;

/// Between who and where in a published number's name.
const AT: &str = " @ ";

/// A figure of a plan.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFigure {
    /// What it shows.
    pub title: String,
    /// A key of the sweep, `arm`, `round`, or `seconds` since the migration began.
    pub x: String,
    /// A [`PlanValue`]; over rounds `sent_pages` or `dirty_pages`, over seconds `steps_per_second`.
    pub y: String,
    /// Which arms; all, unless told otherwise.
    #[serde(default)]
    arms: Option<Vec<String>>,
    /// Where in the sweep.
    #[serde(default)]
    at: BTreeMap<String, String>,
    /// Keys of the sweep whose points count as repetitions.
    #[serde(default)]
    pooled: Vec<String>,
    /// Bars over arms, steps over seconds and lines over the rest, unless told otherwise.
    #[serde(default)]
    kind: Option<KindPart>,
    /// A logarithmic `y`.
    #[serde(default)]
    log: bool,
    /// What was published, in the unit of `y`.
    #[serde(default)]
    paper: BTreeMap<String, f64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindPart {
    Bars,
    Lines,
}

/// How repetitions become one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Statistic {
    /// The middle one.
    Median,
    /// The sum over the number: of ones and zeros the share of ones.
    Mean,
}

/// One number of repetitions, and the interval that holds it in 95 of 100 cases; `None` without any repetition.
pub type Estimator<'a> = dyn Fn(Statistic, &[f64]) -> Option<(f64, [f64; 2])> + 'a;

#[derive(Clone, Copy, Debug)]
enum Value {
    Migration(PlanValue),
    Round(RoundValue),
    Second(SecondValue),
}

/// A chart without its data, and which points belong where.
struct Shape {
    chart: Chart,
    value: Value,
    cells: Vec<Cell>,
}

/// Points that give one mark, or, over rounds and seconds, one line.
struct Cell {
    series: usize,
    x: f64,
    points: Vec<usize>,
}

impl PlanFigure {
    /// Whether it shows something there is.
    pub(super) fn fits(&self, plan: &Plan) -> Result<(), String> {
        let points = plan.points();
        self.shape(&points.iter().collect::<Vec<_>>()).map(|_| ())
    }

    /// The figure, of the results of the plan that it stands in.
    ///
    /// # Errors
    /// Says what the results lack, if they are of another plan.
    pub fn chart(&self, results: &[PointResult], estimate: &Estimator<'_>) -> Result<Chart, String> {
        let points: Vec<&Point> = results.iter().map(|result| &result.point).collect();
        let Shape {
            mut chart,
            value,
            cells,
        } = self.shape(&points)?;
        for cell in &cells {
            let places = || cell.points.iter().map(|&index| &results[index]);
            let to = &mut chart.series[cell.series].points;
            match value {
                Value::Migration(value) => {
                    let factor = value.shown().2;
                    let each = places().flat_map(|place| place.results.iter().map(|one| (one, &place.point)));
                    let numbers: Vec<f64> = each
                        .filter_map(|(one, point)| Some(factor * value.of(one, point)?))
                        .collect();
                    to.extend(mark(cell.x, value.statistic(), &numbers, estimate));
                }
                Value::Round(value) => {
                    let results: Vec<&SimResult> = places().flat_map(|place| &place.results).collect();
                    to.extend(rounds(value, &results, estimate));
                }
                Value::Second(SecondValue::StepsPerSecond) => to.extend(seconds(places(), estimate)),
            }
        }
        for series in &mut chart.series {
            series.points.sort_by(|one, other| one.x.total_cmp(&other.x));
        }
        Ok(chart)
    }

    fn value(&self) -> Result<Value, String> {
        let text = self.y.as_str();
        let value = match self.x.as_str() {
            "round" => RoundValue::deserialize(text.into_deserializer()).map(Value::Round),
            "seconds" => SecondValue::deserialize(text.into_deserializer()).map(Value::Second),
            _ => PlanValue::deserialize(text.into_deserializer()).map(Value::Migration),
        };
        value.map_err(|error: serde::de::value::Error| format!("y: {error}"))
    }

    /// The points it is about.
    fn chosen(&self, points: &[&Point]) -> Result<Vec<usize>, String> {
        let axes = points.first().map_or(&[][..], |point| &point.axes);
        let keys: Vec<&str> = axes.iter().map(|(name, _)| *name).collect();
        let arms = distinct(points.iter().map(|point| point.arm.as_str()));
        for arm in self.arms.iter().flatten() {
            if !arms.contains(&arm.as_str()) {
                return Err(format!("there is no arm {arm:?}; there are {}", arms.join(", ")));
            }
        }
        let over = (!["arm", "round", "seconds"].contains(&self.x.as_str())).then_some(&self.x);
        for key in self.pooled.iter().chain(over) {
            if !keys.contains(&key.as_str()) {
                let some = if keys.is_empty() {
                    "nothing is swept"
                } else {
                    &keys.join(", ")
                };
                let also = if Some(key) == over {
                    "; x may be arm, round or seconds too"
                } else {
                    ""
                };
                return Err(format!("{key:?} is no key of the sweep: {some}{also}"));
            }
        }
        let is_asked = |point: &Point| {
            let arm = self.arms.as_ref().is_none_or(|arms| arms.contains(&point.arm));
            let mut places = self.at.iter();
            arm && places.all(|(name, value)| point.axes.iter().any(|(axis, at)| axis == name && at == value))
        };
        let chosen: Vec<usize> = (0..points.len()).filter(|&index| is_asked(points[index])).collect();
        if chosen.is_empty() {
            let keys = keys.join(", ");
            return Err(format!(
                "`at` names no point of the sweep: write values, as they are written there, of {keys}"
            ));
        }
        Ok(chosen)
    }

    fn shape(&self, points: &[&Point]) -> Result<Shape, String> {
        let value = self.value()?;
        let chosen = self.chosen(points)?;
        let over_arms = self.x == "arm";
        let kind = match (self.kind, self.x.as_str()) {
            (Some(KindPart::Lines), "arm") => return Err("arms are in no order: write kind = \"bars\"".into()),
            (Some(KindPart::Bars), "round" | "seconds") => {
                return Err("there may be many of them: write kind = \"lines\"".into());
            }
            (None, "seconds") => Kind::Steps,
            (Some(KindPart::Bars), _) | (None, "arm") => Kind::Bars,
            _ => Kind::Lines,
        };
        // Only what differs between the points is worth naming.
        let at_x = |point: &Point| {
            point
                .axes
                .iter()
                .find(|(name, _)| *name == self.x)
                .map_or("", |(_, at)| at)
                .to_owned()
        };
        let varies = |key: &str| {
            let values = chosen.iter().flat_map(|&index| &points[index].axes);
            distinct(values.filter(|(name, _)| *name == key).map(|(_, at)| at.as_str())).len() > 1
        };
        let place = |point: &Point| {
            let is_named = |key: &str| key != self.x && !self.pooled.iter().any(|pooled| pooled == key) && varies(key);
            let named = point.axes.iter().filter(|(name, _)| is_named(name));
            named.map(|(_, at)| at.as_str()).collect::<Vec<_>>().join(", ")
        };
        let name = |point: &Point| match place(point) {
            place if over_arms && place.is_empty() => "simulated".to_owned(),
            place if over_arms => place,
            place if place.is_empty() => point.arm.clone(),
            place => format!("{}, {place}", point.arm),
        };
        let names = distinct(chosen.iter().map(|&index| name(points[index])));
        let texts = match over_arms {
            true => distinct(chosen.iter().map(|&index| points[index].arm.clone())),
            false => distinct(chosen.iter().map(|&index| at_x(points[index]))),
        };
        let (x, values) = match self.x.as_str() {
            "arm" => axis::words("strategy", &texts),
            "round" => (Axis::of_numbers("round", ""), vec![0.0]),
            "seconds" => (Axis::of_numbers("time since the migration began", "s"), vec![0.0]),
            key if kind == Kind::Bars => axis::words(key, &texts),
            key => axis::of(key, &texts),
        };
        let (title, unit) = match value {
            Value::Migration(value) => (value.shown().0, value.shown().1),
            Value::Round(RoundValue::SentPages) => ("pages sent in the round", "pages"),
            Value::Round(RoundValue::DirtyPages) => ("pages dirty after the round", "pages"),
            Value::Second(SecondValue::StepsPerSecond) => ("speed of the guest", "steps/s"),
        };
        let y = Axis {
            log: self.log,
            ..Axis::of_numbers(title, unit)
        };
        let mut cells: Vec<Cell> = Vec::new();
        for &index in &chosen {
            let point = points[index];
            let text = if over_arms { point.arm.clone() } else { at_x(point) };
            let x = texts.iter().position(|one| *one == text).map_or(0.0, |at| values[at]);
            let series = position(&names, &name(point)).unwrap_or(0);
            match cells.iter_mut().find(|cell| cell.series == series && cell.x == x) {
                Some(cell) => cell.points.push(index),
                None => cells.push(Cell {
                    series,
                    x,
                    points: vec![index],
                }),
            }
        }
        let series = names.iter().map(|name| Series {
            name: name.clone(),
            ..Series::default()
        });
        let mut chart = Chart {
            title: self.title.clone(),
            kind,
            x,
            y,
            series: series.collect(),
            interval: String::new(),
        };
        for (key, &number) in &self.paper {
            let (series, x) = self.published(key, &names, &texts, &values)?;
            chart.series[series].published.push([x, number]);
        }
        Ok(Shape { chart, value, cells })
    }

    /// Where a published number belongs.
    fn published(&self, key: &str, names: &[String], texts: &[String], values: &[f64]) -> Result<(usize, f64), String> {
        let none = |what: &str, there: &[String]| {
            format!("paper: {key:?}: there is no {what}; there are {}", there.join(" | "))
        };
        let (who, at) = match key.split_once(AT) {
            Some((who, at)) => (who, Some(at)),
            None => (key, None),
        };
        if self.x == "arm" {
            let x = position(texts, who).ok_or_else(|| none(&format!("arm {who:?}"), texts))?;
            let series = match at {
                Some(place) => position(names, place),
                None => (names.len() == 1).then_some(0),
            };
            let series = series.ok_or_else(|| none("such place, which stands after \" @ \"", names))?;
            return Ok((series, values[x]));
        }
        let series = position(names, who).ok_or_else(|| none(&format!("line {who:?}"), names))?;
        let x = match at {
            Some(at) if ["round", "seconds"].contains(&self.x.as_str()) => at.parse().ok().filter(|x: &f64| *x >= 0.0),
            Some(at) => position(texts, at).map(|at| values[at]),
            None => None,
        };
        let x = x.ok_or_else(|| none(&format!("such {}, which stands after \" @ \"", self.x), texts))?;
        Ok((series, x))
    }
}

fn position(all: &[String], one: &str) -> Option<usize> {
    all.iter().position(|other| other == one)
}

/// Each once, in the order of the first of each.
pub(super) fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const PLAN: &str = r#"
title = "One round against two"
repetitions = 3
[guest]
workload = "uniform,rate=2000"
memory = "16MiB"
[link]
bandwidth = "40MB/s"
[limits]
downtime = "5ms"
[sweep]
memory = ["8MiB", "16MiB"]
bandwidth = ["20MB/s", "40MB/s"]
[[arm]]
name = "1-hybrid"
strategy = "hybrid:1"
[[arm]]
name = "pre"
strategy = "precopy"
[[figure]]
title = "Total time"
"#;

    fn parse(figure: &str) -> Result<Plan, String> {
        Plan::parse(&format!("{PLAN}{figure}"), Path::new("x.toml")).map_err(|error| error.to_string())
    }

    /// The least, and from that to the largest.
    fn least(statistic: Statistic, numbers: &[f64]) -> Option<(f64, [f64; 2])> {
        assert_eq!(statistic, Statistic::Median);
        let least = numbers.iter().copied().reduce(f64::min)?;
        Some((least, [least, numbers.iter().copied().reduce(f64::max)?]))
    }

    fn chart(figure: &str) -> (Chart, Vec<PointResult>) {
        let plan = parse(figure).expect("a plan");
        let results = plan.run(Path::new("x.toml"), &|| ()).expect("all can be simulated");
        (plan.figure[0].chart(&results, &least).expect("of this plan"), results)
    }

    #[test]
    fn a_line_for_each_arm_and_place() {
        let figure = r#"
x = "memory"
y = "bytes"
paper = { "1-hybrid, 20MB/s @ 16MiB" = 18.5 }
"#;
        let (chart, results) = chart(figure);
        assert_eq!(
            (chart.kind, chart.x.label(), chart.y.label()),
            (Kind::Lines, "memory (MiB)".into(), "data on all channels (MB)".into())
        );
        let names: Vec<&str> = chart.series.iter().map(|series| series.name.as_str()).collect();
        assert_eq!(
            names,
            ["1-hybrid, 20MB/s", "pre, 20MB/s", "1-hybrid, 40MB/s", "pre, 40MB/s"]
        );
        let places: Vec<f64> = chart.series[3].points.iter().map(|point| point.x).collect();
        assert_eq!(places, [8.0, 16.0]);
        assert_eq!(
            results[7].point.to_string(),
            r#"arm "pre", memory = "16MiB", bandwidth = "40MB/s""#
        );
        let bytes = results[7]
            .results
            .iter()
            .map(|one| one.report.bytes.total())
            .min()
            .expect("three");
        assert!((chart.series[3].points[1].y - bytes as f64 / 1e6).abs() < 1e-9);
        assert_eq!(chart.series[0].published, [[16.0, 18.5]]);
        assert!(chart.series[1].published.is_empty());
    }

    #[test]
    fn bars_for_each_arm_at_a_place() {
        let figure = r#"
x = "arm"
y = "time"
arms = ["pre"]
at = { memory = "8MiB" }
paper = { "pre @ 40MB/s" = 1.5 }
"#;
        let (one, _) = chart(figure);
        assert_eq!((one.kind, &one.x.categories), (Kind::Bars, &vec!["pre".to_owned()]));
        assert_eq!(one.series[1].name, "40MB/s");
        assert_eq!(
            (&one.series[1].published, one.series[1].points.len()),
            (&vec![[0.0, 1.5]], 1)
        );
        let (pooled, results) =
            chart("x = \"arm\"\ny = \"time\"\npooled = [\"memory\", \"bandwidth\"]\npaper = { pre = 2 }\n");
        assert_eq!((pooled.series.len(), pooled.series[0].points.len()), (1, 2));
        let of_pre = results
            .iter()
            .filter(|result| result.point.arm == "pre")
            .flat_map(|result| &result.results);
        let longest = of_pre.map(|one| one.report.total_time_us).max().expect("twelve");
        assert_eq!(
            pooled.series[0].points[1].interval.expect("some")[1],
            longest as f64 / 1e6
        );
    }

    #[test]
    fn a_mark_for_each_round() {
        let figure = r#"
x = "round"
y = "dirty_pages"
at = { memory = "16MiB", bandwidth = "20MB/s" }
paper = { "pre @ 2" = 100 }
"#;
        let (chart, results) = chart(figure);
        assert_eq!(
            (chart.series[0].name.as_str(), chart.series[0].points.len()),
            ("1-hybrid", 1)
        );
        let rounds = &results[5].results[0].report.rounds;
        assert_eq!(
            results[5].point.to_string(),
            r#"arm "pre", memory = "16MiB", bandwidth = "20MB/s""#
        );
        let pre = &chart.series[1];
        assert!(pre.points.len() >= 2 && pre.points.len() <= rounds.len() + 1, "{pre:?}");
        assert_eq!((pre.points[1].x, pre.published[0]), (2.0, [2.0, 100.0]));
        assert!(pre.points[0].y > pre.points[1].y, "it converges: {pre:?}");
    }

    #[test]
    fn a_step_for_each_second() {
        let figure = r#"
x = "seconds"
y = "steps_per_second"
arms = ["1-hybrid"]
at = { bandwidth = "2MB/s" }
paper = { "1-hybrid @ 2.5" = 2000 }
"#;
        let text = format!("{}{figure}", PLAN.replace("\"20MB/s\", \"40MB/s\"", "\"2MB/s\""))
            .replace("\"8MiB\", \"16MiB\"", "\"16MiB\"");
        let plan = Plan::parse(&text, Path::new("x.toml")).expect("a plan");
        let results = plan.run(Path::new("x.toml"), &|| ()).expect("all can be simulated");
        let chart = plan.figure[0].chart(&results, &least).expect("of this plan");
        assert_eq!(
            (chart.kind, chart.y.label()),
            (Kind::Steps, "speed of the guest (steps/s)".into())
        );
        let (points, line) = (&chart.series[0].points, &results[0].results[0].timeline);
        assert_eq!(points.len(), line.len() + 1, "a mark for each second, and the end");
        let places: Vec<f64> = points.iter().map(|point| point.x).collect();
        assert_eq!(places, (0..=line.len()).map(|second| second as f64).collect::<Vec<_>>());
        assert!(
            points[..7].iter().all(|point| (point.y - 2000.0).abs() < 10.0),
            "{points:?}"
        );
        let second = (line[1] - line[0]) as f64;
        let [low, high] = points[1].interval.expect("some");
        assert!(low <= second && second <= high, "{points:?}");
        assert_eq!(chart.series[0].published, [[2.5, 2000.0]]);
    }

    #[test]
    fn what_there_is_not_is_named() {
        for (figure, words) in [
            (
                "x = \"memory\"\ny = \"tme\"",
                "unknown variant `tme`, expected one of `time`",
            ),
            ("x = \"round\"\ny = \"time\"", "`sent_pages` or `dirty_pages`"),
            ("x = \"seconds\"\ny = \"time\"", "`steps_per_second`"),
            (
                "x = \"memry\"\ny = \"time\"",
                "\"memry\" is no key of the sweep: memory, bandwidth; x may be arm, round or seconds too",
            ),
            (
                "x = \"arm\"\ny = \"time\"\narms = [\"post\"]",
                "no arm \"post\"; there are 1-hybrid, pre",
            ),
            (
                "x = \"arm\"\ny = \"time\"\nat = { memory = \"9MiB\" }",
                "of memory, bandwidth",
            ),
            ("x = \"arm\"\ny = \"time\"\npooled = [\"vcpus\"]", "\"vcpus\" is no key"),
            ("x = \"arm\"\ny = \"time\"\nkind = \"lines\"", "kind = \"bars\""),
            ("x = \"round\"\ny = \"sent_pages\"\nkind = \"bars\"", "kind = \"lines\""),
            ("x = \"arm\"\ny = \"time\"\nkind = \"pie\"", "unknown variant `pie`"),
            ("x = \"arm\"\ny = \"time\"\ncolour = \"red\"", "unknown field `colour`"),
            ("x = \"arm\"\ny = \"time\"\npaper = { pre = 1.0 }", "no such place"),
            (
                "x = \"arm\"\ny = \"time\"\npaper = { \"post @ x\" = 1.0 }",
                "no arm \"post\"",
            ),
            (
                "x = \"memory\"\ny = \"time\"\npaper = { \"pre, 20MB/s\" = 1.0 }",
                "no such memory",
            ),
            (
                "x = \"memory\"\ny = \"time\"\npaper = { \"pre @ 8MiB\" = 1.0 }",
                "no line \"pre\"; there are 1-hybrid, 20MB/s | pre, 20MB/s",
            ),
        ] {
            let error = parse(figure).expect_err(figure);
            assert!(error.contains("x.toml") && error.contains(words), "{figure}: {error}");
        }
    }
}
