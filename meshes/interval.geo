// The interval [-radius, radius]: gmsh -1 interval.geo -setnumber radius 6 -setnumber h 0.1
DefineConstant[
  radius = {6.0, Name "Half-length"},
  h = {0.1, Name "Cell size at the centre"},
  grading = {3.0, Name "Cell size at the ends over that at the centre"}
];

Point(1) = {-radius, 0, 0, grading * h};
Point(2) = {0, 0, 0, h};
Point(3) = {radius, 0, 0, grading * h};
Line(1) = {1, 2};
Line(2) = {2, 3};

Physical Point("boundary", 1) = {1, 3};
Physical Curve("domain", 1) = {1, 2};
