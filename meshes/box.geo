// The rectangle [-a, a] x [-b, b] or, with dim = 3, the box times [-c, c]:
// gmsh -2 box.geo -setnumber a 6 -setnumber b 3 -setnumber h 0.2
// gmsh -3 box.geo -setnumber dim 3 -setnumber h 0.5
SetFactory("OpenCASCADE");
DefineConstant[
  dim = {2, Choices{2, 3}, Name "Dimension"},
  a = {6.0, Name "Half-length along x"},
  b = {6.0, Name "Half-length along y"},
  c = {6.0, Name "Half-length along z"},
  h = {0.2, Name "Cell size"}
];

Mesh.MeshSizeMin = h;
Mesh.MeshSizeMax = h;
Mesh.Algorithm = 6;

If (dim == 2)
  Rectangle(1) = {-a, -b, 0, 2 * a, 2 * b};
  Physical Curve("boundary", 1) = Boundary{ Surface{1}; };
  Physical Surface("domain", 1) = {1};
Else
  Box(1) = {-a, -b, -c, 2 * a, 2 * b, 2 * c};
  Physical Surface("boundary", 1) = Boundary{ Volume{1}; };
  Physical Volume("domain", 1) = {1};
EndIf
