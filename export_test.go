package shoal

// NormalAddr is for tests outside the package.
var NormalAddr = normalAddr

// RaceEnabled is raceEnabled.
const RaceEnabled = raceEnabled
