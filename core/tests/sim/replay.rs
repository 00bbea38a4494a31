//! A world by name: what a failure prints, and how the same world is made again from it.

use super::*;

/// The variable that holds the name.
const VARIABLE: &str = "DUNLIN_WORLD";
const SHAPES: [Shape; 4] = [HOLE, ADJACENT, ONE_PAGE, TWO_MISSING];
const SILENT: &str = " silent";

/// The command that runs such a world alone and shows every step.
pub(super) fn label(strategy: &str, seed: u64, shape: Shape, plans: &[Plan]) -> String {
    let shape = SHAPES.iter().position(|known| *known == shape).expect("a known shape");
    let faults: String = plans.iter().map(|(fault, at)| format!(" {fault:?}@{at}")).collect();
    format!(
        "{VARIABLE}='{strategy} {seed} {shape}{faults}' cargo test -p dunlin-core --features wire --test handover replay -- --nocapture"
    )
}

/// The same for a guest that never writes.
pub(super) fn mark_silent(label: &mut String) {
    let end = label.rfind('\'').expect("a label has two");
    label.insert_str(end, SILENT);
}

/// The world that the environment names, if it names one.
pub(crate) fn named_world() -> Option<World> {
    Some(world(&std::env::var(VARIABLE).ok()?))
}

fn world(name: &str) -> World {
    let (words, silent) = match name.strip_suffix(SILENT) {
        Some(words) => (words, true),
        None => (name, false),
    };
    let mut words = words.split(' ');
    let mut next = || words.next().expect("strategy, seed and shape");
    let strategy = next();
    let seed = next().parse().expect("a seed is a number");
    let shape = SHAPES[next().parse::<usize>().expect("a shape is a number")];
    let plan = |word: &str| {
        let (fault, at) = word.split_once('@').expect("a fault is written FAULT@BOUNDARY");
        (
            Fault::named(fault).expect("a fault there is"),
            at.parse().expect("a boundary is a number"),
        )
    };
    let plans: Vec<Plan> = words.map(plan).collect();
    let world = World::shaped(strategy, seed, shape, &plans);
    if silent { world.silent() } else { world }
}

impl Drop for World {
    fn drop(&mut self) {
        // A panic inside the machines does not know the world.
        if std::thread::panicking() {
            eprintln!("to run this world alone: {self}");
        }
    }
}

#[test]
fn a_world_is_made_again_from_its_name() {
    let plans = [(Fault::Stall, 7), (Fault::StorageLate, 0)];
    for original in [
        World::shaped("pa-hybrid,cut=reconnect", 5, ADJACENT, &plans),
        World::new("precopy", 1, &[]).silent(),
    ] {
        let label = original.to_string();
        let name = label.split('\'').nth(1).expect("quoted");
        let again = world(name);
        assert_eq!(again.to_string(), label);
        assert_eq!(again.truth, original.truth);
        assert_eq!(again.write_rate, original.write_rate);
    }
}
