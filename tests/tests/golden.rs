//! One setup and one seed have one answer: the table is what the simulator said when each number was looked at.

use dunlin_tests::golden;

#[test]
fn the_simulator_says_what_it_said() {
    if std::env::var_os("DUNLIN_WRITE_GOLDEN").is_some() {
        let table = golden::table().expect("every migration can be simulated");
        std::fs::write(golden::path(), table).expect("it can be written");
    }
    golden::check().unwrap_or_else(|error| panic!("{error:#}"));
}
